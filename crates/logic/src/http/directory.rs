//! Handlers of the read-only routes: rooms, online counts, nodes, the protocol table.

use std::borrow::Cow;
use std::collections::BTreeMap;

use axum::body::Body;
use axum::http::Response;
use goim_ports::CometNode;

use super::error::{ApiError, Reply};
use super::query::QueryValues;
use super::reply;
use super::{json, push};
use crate::logic::Logic;
use crate::nodes::NodesReply;

/// The maximum number of sessions of a room in one answer.
const MEMBERS_MAX: i64 = 10_000;

pub(super) async fn room_members(logic: &Logic, values: &QueryValues<'_>) -> Reply {
    let limit = values.number("limit");
    if !(1..=MEMBERS_MAX).contains(&limit) {
        let message = format!("limit must be from 1 to {MEMBERS_MAX}: {limit}");
        return Err(ApiError::bad_parameter(message));
    }
    let room = push::room_of(values)?;
    let (members, count) = logic.room_members(&room, usize::try_from(limit).unwrap_or_default()).await;
    Ok(reply::data(|out| {
        let mut object = json::ObjectWriter::open(out);
        json::number(object.member(b"count"), count);
        json::array(object.member(b"members"), members, |out, (server, member)| {
            let mut object = json::ObjectWriter::open(out);
            object.number("mid", member.mid.0);
            object.text("key", member.key.as_str());
            object.text("server", server.as_str());
            object.close();
        });
        object.close();
    }))
}

pub(super) async fn online_top(logic: &Logic, values: &QueryValues<'_>) -> Reply {
    let limit = values.number("limit");
    if limit < 0 {
        return Err(ApiError::bad_parameter(format!("limit must not be negative: {limit}")));
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let rooms = match std::str::from_utf8(values.text("type")) {
        Ok(kind) => logic.online_top(kind, limit).await,
        Err(_) => Vec::new(),
    };
    Ok(reply::data(|out| {
        json::array(out, rooms, |out, room| {
            let mut object = json::ObjectWriter::open(out);
            object.text("room_id", &room.room);
            object.number("count", room.count);
            object.close();
        });
    }))
}

pub(super) async fn online_room(logic: &Logic, values: &QueryValues<'_>) -> Response<Body> {
    let counts = logic.room_counts().await;
    let kind = values.text("type");
    let count_of = |room: &[u8]| {
        let id = String::from_utf8([kind, b"://", room].concat()).ok()?;
        counts.get(id.as_str()).copied()
    };
    let rooms: BTreeMap<&Cow<'_, [u8]>, u32> =
        values.texts("rooms").iter().map(|room| (room, count_of(room).unwrap_or(0))).collect();
    reply::data(|out| {
        let mut object = json::ObjectWriter::open(out);
        for (room, count) in rooms {
            json::number(object.member(room), count);
        }
        object.close();
    })
}

pub(super) fn online_total(logic: &Logic) -> Response<Body> {
    let total = logic.online_total();
    reply::data(|out| {
        let mut object = json::ObjectWriter::open(out);
        object.number("conn_count", total.connections);
        object.number("ip_count", total.addresses);
        object.close();
    })
}

pub(super) fn nodes_weighted(logic: &Logic, values: &QueryValues<'_>) -> Response<Body> {
    let platform = String::from_utf8_lossy(values.text("platform"));
    let nodes = logic.weighted_nodes(&platform);
    reply::data(|out| write_nodes(out, &nodes))
}

fn write_nodes(out: &mut Vec<u8>, nodes: &NodesReply) {
    let mut object = json::ObjectWriter::open(out);
    object.some_text("domain", &nodes.domain);
    object.some_number("tcp_port", nodes.tcp_port.into());
    object.some_number("ws_port", nodes.ws_port.into());
    object.some_number("wss_port", nodes.wss_port.into());
    object.some_number("heartbeat", nodes.heartbeat);
    json::array(object.member(b"nodes"), &nodes.nodes, |out, node| json::string(out, node.as_bytes()));
    let mut backoff = json::ObjectWriter::open(object.member(b"backoff"));
    backoff.some_number("max_delay", nodes.backoff.max_delay);
    backoff.some_number("base_delay", nodes.backoff.base_delay);
    backoff.some_float("factor", nodes.backoff.factor);
    backoff.some_float("jitter", nodes.backoff.jitter);
    backoff.close();
    object.some_number("heartbeat_max", nodes.heartbeat_max);
    object.close();
}

pub(super) fn nodes_instances(logic: &Logic) -> Response<Body> {
    let comets = logic.instances();
    reply::data(|out| {
        if comets.is_empty() {
            out.extend_from_slice(b"null");
        } else {
            json::array(out, &comets, write_instance);
        }
    })
}

/// Writes an instance as bilibili/discovery has it, its metadata sorted.
fn write_instance(out: &mut Vec<u8>, comet: &CometNode) {
    let mut object = json::ObjectWriter::open(out);
    object.text("region", &comet.region);
    object.text("zone", &comet.zone);
    object.text("env", &comet.env);
    object.text("appid", "goim.comet");
    object.text("hostname", comet.server.as_str());
    json::array(object.member(b"addrs"), &comet.rpc_addrs, |out, addr| json::string(out, addr.as_bytes()));
    object.text("version", "");
    object.number("latest_timestamp", comet.latest_timestamp);
    let mut metadata = json::ObjectWriter::open(object.member(b"metadata"));
    metadata.text("addrs", &comet.public_addrs.join(","));
    metadata.text("conn_count", &comet.connections.to_string());
    metadata.text("ip_count", &comet.addresses.to_string());
    metadata.text("offline", if comet.offline { "true" } else { "false" });
    metadata.text("weight", &comet.weight.to_string());
    metadata.close();
    object.close();
}

pub(super) fn protocol(logic: &Logic) -> Response<Body> {
    let table = &logic.config.versions;
    let row = |row: &goim_ports::VersionRow| {
        serde_json::json!({
            "version": row.version.0, "schema": row.schema.0, "encoding": row.encoding.name(),
        })
    };
    let rows: Vec<_> = table.rows().iter().map(row).collect();
    reply::data(|out| {
        let data = serde_json::json!({ "protover": table.highest().0, "versions": rows });
        out.extend_from_slice(data.to_string().as_bytes());
    })
}
