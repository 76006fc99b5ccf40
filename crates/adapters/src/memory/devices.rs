//! The devices of members, in this process.

use std::collections::HashMap;

use goim_ports::{Call, Device, DeviceDirectory, DirectoryError, Mid, SessionKey};

use parking_lot::Mutex;

/// A device directory in memory. Only members with a device have an entry.
#[derive(Debug, Default)]
pub struct MemoryDevices(Mutex<HashMap<Mid, HashMap<SessionKey, Device>>>);

impl DeviceDirectory for MemoryDevices {
    fn enter(
        &self,
        mid: Mid,
        key: SessionKey,
        device: Device,
    ) -> Call<Result<Vec<(SessionKey, Device)>, DirectoryError>> {
        let mut members = self.0.lock();
        let devices = members.entry(mid).or_default();
        devices.insert(key, device);
        Call::Ready(Ok(devices.iter().map(|(key, device)| (key.clone(), device.clone())).collect()))
    }

    fn forget(&self, mid: Mid, keys: Vec<SessionKey>) -> Call<Result<(), DirectoryError>> {
        let mut members = self.0.lock();
        if let Some(devices) = members.get_mut(&mid) {
            devices.retain(|key, _| !keys.contains(key));
            if devices.is_empty() {
                members.remove(&mid);
            }
        }
        Call::Ready(Ok(()))
    }
}
