//! Addresses of other nodes, as in the node list.

use tonic::transport::Endpoint;

/// An invalid address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the address of a node; it should look like grpc://host:port")]
pub struct AddressError(String);

/// An address as `grpc://host:port` or `host:port`. Without a host it is this machine: Go nodes
/// that find no address for themselves announce that.
pub(super) fn endpoint(address: &str) -> Result<Endpoint, AddressError> {
    // Nodes have no passwords; credentials in an address are not printed.
    let shown = address.rsplit_once('@').map_or(address, |(_, host)| host);
    let wrong = || AddressError(shown.split(['?', '#']).next().unwrap_or_default().to_owned());
    let rest = address.strip_prefix("grpc://").unwrap_or(address);
    let (host, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    let host = if host.is_empty() { "localhost" } else { host };
    if port == 0 || host.contains(['/', '@', '?', '#']) {
        return Err(wrong());
    }
    Endpoint::from_shared(format!("http://{host}:{port}")).map_err(|_| wrong())
}

/// Checks that an address is `grpc://host:port` or `host:port`.
///
/// # Errors
/// [`AddressError`] if it is invalid.
pub fn check(address: &str) -> Result<(), AddressError> {
    endpoint(address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(address: &str, uri: Option<&str>) {
        let endpoint = endpoint(address).ok();
        assert_eq!(endpoint.map(|endpoint| endpoint.uri().to_string()).as_deref(), uri, "{address}");
    }

    #[test]
    fn addresses_are_those_of_node_lists() {
        check("grpc://10.0.0.1:3109", Some("http://10.0.0.1:3109/"));
        check("comet-1.internal:3109", Some("http://comet-1.internal:3109/"));
        check("grpc://[::1]:3109", Some("http://[::1]:3109/"));
        check("grpc://:3109", Some("http://localhost:3109/"));
        for wrong in
            ["", "grpc://", "host", "grpc://host:0", "grpc://host:99999", "http://host:1", "grpc://a/b:1"]
        {
            check(wrong, None);
        }
    }
}
