//! Instances as discovery servers give and take them, in all the shapes that their versions have.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// The code that says that there is nothing new.
const NOT_MODIFIED: i64 = -304;

/// One instance of an app. What is missing or null is empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Instance {
    pub(super) region: String,
    pub(super) zone: String,
    pub(super) env: String,
    pub(super) hostname: String,
    pub(super) addrs: Vec<String>,
    /// None where it is null: goim's logic counts such an instance as not there.
    pub(super) metadata: Option<BTreeMap<String, String>>,
    pub(super) latest_timestamp: i64,
}

/// What an answer says of one app.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct App {
    /// Of all zones.
    pub(super) instances: Vec<Instance>,
    pub(super) latest_timestamp: i64,
}

/// An answer to a poll.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Polled {
    NothingNew,
    /// By app; those that have nothing to say are left out.
    News(BTreeMap<String, App>),
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

/// The code of an answer.
pub(super) fn code_of(body: &[u8]) -> Result<i64, serde_json::Error> {
    serde_json::from_slice::<Envelope>(body).map(|envelope| envelope.code)
}

/// The answer to a poll. Data that come with any code but 0 are nobody's concern.
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
    Ok(Polled::News(apps.filter_map(app).collect()))
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
