//! Compressed runs that other programs have written, and malformed ones:
//! `testdata/wire/compressed.json`.

#![allow(clippy::unwrap_used)]

use goim_compression::{InflateError, inflate};
use goim_wire::{Encoding, Packet, batch};
use serde_json::Value;

fn load() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/wire/compressed.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn hex(value: &Value) -> Vec<u8> {
    let digits = value.as_str().unwrap().as_bytes();
    digits.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn encoding(entry: &Value) -> Encoding {
    let name = entry["encoding"].as_str().unwrap();
    Encoding::ALL.into_iter().find(|encoding| encoding.name() == name).unwrap()
}

#[test]
fn runs_of_others_are_read() {
    for entry in load()["runs"].as_array().unwrap() {
        let bytes = hex(&entry["bytes"]);
        let outer = Packet::from_message(&bytes, usize::MAX).unwrap();
        let run = inflate(encoding(entry), outer.body, 1 << 16);
        let run = run.unwrap_or_else(|error| panic!("{}: {error}", entry["name"]));
        let inner: Vec<Value> = batch::packets(&run)
            .map(|packet| {
                let packet = packet.unwrap();
                let body: String = packet.body.iter().map(|byte| format!("{byte:02x}")).collect();
                serde_json::json!({
                    "version": packet.version.0, "operation": packet.operation.0,
                    "sequence": packet.sequence.0, "body": body,
                })
            })
            .collect();
        assert_eq!(&Value::from(inner), &entry["inner"], "{}", entry["name"]);
    }
}

#[test]
fn what_is_no_such_run_is_refused() {
    for entry in load()["malformed"].as_array().unwrap() {
        let max = entry["inflated_max"].as_u64().map_or(1 << 16, |max| usize::try_from(max).unwrap());
        let error = inflate(encoding(entry), &hex(&entry["body"]), max).map_err(|error| match error {
            InflateError::TooLarge(_) => "too_large",
            InflateError::Malformed(_) => "malformed",
        });
        assert_eq!(error, Err(entry["error"].as_str().unwrap()), "{}", entry["name"]);
    }
}
