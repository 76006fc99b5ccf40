//! Instances as discovery servers return them, in the formats of all server versions.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// The code for "nothing new".
const NOT_MODIFIED: i64 = -304;

/// One instance of an app. Missing and null fields are empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Instance {
    pub(super) region: String,
    pub(super) zone: String,
    pub(super) env: String,
    pub(super) hostname: String,
    pub(super) addrs: Vec<String>,
    /// `None` when it is null: goim's logic ignores such an instance.
    pub(super) metadata: Option<BTreeMap<String, String>>,
    pub(super) latest_timestamp: i64,
}

/// One app in a response.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct App {
    /// The instances of all zones.
    pub(super) instances: Vec<Instance>,
    pub(super) latest_timestamp: i64,
}

/// The response to a poll.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Polled {
    NothingNew,
    /// Updates by app. Apps without changes are omitted.
    Updates(BTreeMap<String, App>),
    Refused(i64),
}

#[derive(Deserialize)]
struct Envelope {
    code: i64,
    #[serde(default)]
    data: Value,
}

#[derive(Deserialize)]
struct RawApp {
    #[serde(default)]
    instances: Option<BTreeMap<String, Option<Vec<RawInstance>>>>,
    #[serde(default)]
    latest_timestamp: i64,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct RawInstance {
    region: Option<String>,
    zone: Option<String>,
    env: Option<String>,
    hostname: Option<String>,
    addrs: Option<Vec<String>>,
    metadata: Option<BTreeMap<String, String>>,
    latest_timestamp: i64,
}

/// Returns the code of a response.
pub(super) fn code_of(body: &[u8]) -> Result<i64, serde_json::Error> {
    serde_json::from_slice::<Envelope>(body).map(|envelope| envelope.code)
}

/// Parses the response to a poll. Data is ignored unless the code is 0.
pub(super) fn read_poll(body: &[u8]) -> Result<Polled, serde_json::Error> {
    let Envelope { code, data } = serde_json::from_slice(body)?;
    match code {
        0 => {}
        NOT_MODIFIED => return Ok(Polled::NothingNew),
        code => return Ok(Polled::Refused(code)),
    }
    let apps: Option<BTreeMap<String, Option<RawApp>>> = serde_json::from_value(data)?;
    let apps = apps.unwrap_or_default().into_iter();
    let app = |(name, app): (String, Option<RawApp>)| {
        let RawApp { instances, latest_timestamp } = app?;
        let zones = instances.unwrap_or_default();
        let instances = zones.into_values().flatten().flatten().map(Instance::from).collect();
        Some((name, App { instances, latest_timestamp }))
    };
    Ok(Polled::Updates(apps.filter_map(app).collect()))
}

impl From<RawInstance> for Instance {
    fn from(raw: RawInstance) -> Self {
        Self {
            region: raw.region.unwrap_or_default(),
            zone: raw.zone.unwrap_or_default(),
            env: raw.env.unwrap_or_default(),
            hostname: raw.hostname.unwrap_or_default(),
            addrs: raw.addrs.unwrap_or_default(),
            metadata: raw.metadata,
            latest_timestamp: raw.latest_timestamp,
        }
    }
}
