//! goim v2's load balancer: orders comets by weight and number of connections.
//!
//! A comet should hold a share of all connections equal to its share of all weights. The further
//! below that share it is, the earlier it is in the list. Between two reports of a comet the
//! balancer adds the clients that it sends there, so that a burst does not go to one comet. The
//! arithmetic is goim v2's, including its rounding, but not its division by zero for comets without
//! weight.

use std::collections::HashMap;
use std::sync::Arc;

use goim_ports::{CometNode, ServerId};
use parking_lot::Mutex;

/// The maximum weight of a comet that holds less than its share.
const WEIGHT_MAX: i64 = 1 << 20;
/// The minimum weight of a comet that holds more than its share.
const WEIGHT_MIN: i64 = 1;

/// The comets and the clients sent to them since their last report.
#[derive(Default)]
pub(crate) struct Balancer(Mutex<BalancerState>);

#[derive(Default)]
struct BalancerState {
    /// The list that `nodes` was built from. Held, so that its address cannot be reused by another
    /// list.
    seen: Option<Arc<Vec<CometNode>>>,
    nodes: Vec<WeightedComet>,
    total_weight: i64,
    total_connections: i64,
}

#[derive(Clone)]
struct WeightedComet {
    comet: Arc<CometNode>,
    /// The reported number, plus one for each client sent there since.
    connections: i64,
    /// The weight for the current client.
    current: i64,
}

impl Balancer {
    /// Returns the comets that accept clients, the best for a client of `region` first, and counts
    /// the client on the first.
    pub(crate) fn choose(
        &self,
        comets: &Arc<Vec<CometNode>>,
        region: &str,
        gain: f64,
    ) -> Vec<Arc<CometNode>> {
        let mut state = self.0.lock();
        if !state.seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, comets)) {
            state.refresh(comets);
            state.seen = Some(Arc::clone(comets));
        }
        state.weigh(region, gain);
        state
            .nodes
            .sort_by(|a, b| b.current.cmp(&a.current).then_with(|| a.comet.server.cmp(&b.comet.server)));
        if let Some(first) = state.nodes.first_mut() {
            first.connections += 1;
            state.total_connections += 1;
        }
        state.nodes.iter().map(|node| Arc::clone(&node.comet)).collect()
    }
}

impl BalancerState {
    /// Replaces the list. A comet whose record is unchanged keeps its counted clients. A list that
    /// is empty or less than half as long as the last one is more likely a failure of the directory
    /// than the truth, so it is ignored, as in goim v2.
    fn refresh(&mut self, comets: &[CometNode]) {
        let online: Vec<&CometNode> = comets.iter().filter(|comet| !comet.offline).collect();
        if online.is_empty() || online.len() * 2 < self.nodes.len() {
            return;
        }
        let mut known: HashMap<ServerId, WeightedComet> =
            self.nodes.drain(..).map(|node| (node.comet.server.clone(), node)).collect();
        for comet in online {
            let appended = known
                .remove(&comet.server)
                .filter(|node| node.comet.latest_timestamp == comet.latest_timestamp);
            self.nodes.push(appended.unwrap_or_else(|| WeightedComet::new(comet)));
        }
        self.total_weight = self.nodes.iter().map(WeightedComet::weight).sum();
        self.total_connections = self.nodes.iter().map(|node| node.connections).sum();
    }

    fn weigh(&mut self, region: &str, gain: f64) {
        let (total_weight, total_connections) = (self.total_weight, self.total_connections);
        let equal_share = 1.0 / self.nodes.len().max(1) as f64;
        for node in &mut self.nodes {
            let gain = if node.comet.region == region { gain } else { 1.0 };
            node.current = node.weigh(total_weight, total_connections, gain, equal_share);
        }
    }
}

impl WeightedComet {
    fn new(comet: &CometNode) -> Self {
        // goim v2 reads the count as an i32.
        let connections = i64::try_from(comet.connections).unwrap_or(i64::MAX).min(i64::from(i32::MAX));
        Self { comet: Arc::new(comet.clone()), connections, current: 0 }
    }

    fn weight(&self) -> i64 {
        i64::from(self.comet.weight)
    }

    /// The weight of this comet for one client. When no comet has a weight, each is due an equal
    /// share.
    fn weigh(&self, total_weight: i64, total_connections: i64, gain: f64, equal_share: f64) -> i64 {
        if total_connections == 0 {
            return 0;
        }
        let fixed = self.weight() as f64 * gain;
        let total_weight = total_weight + (fixed as i64 - self.weight());
        let due = if total_weight > 0 { fixed / total_weight as f64 } else { equal_share };
        let held = self.connections as f64 / total_connections as f64 * 0.5;
        let lacking = due - held;
        let current = (fixed + round_half_down(lacking * total_connections as f64)) as i64;
        if lacking < 0.0 { current.max(WEIGHT_MIN) } else { current.min(WEIGHT_MAX) }
    }
}

/// Rounds to the nearest integer, and a half down.
fn round_half_down(number: f64) -> f64 {
    let floor = number.floor();
    if floor - number >= -0.5 { floor } else { number.ceil() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comet(name: &str, region: &str, weight: i32, connections: u64) -> CometNode {
        CometNode {
            server: ServerId::from(name),
            region: region.to_owned(),
            zone: String::new(),
            env: String::new(),
            rpc_addrs: Vec::new(),
            public_addrs: Vec::new(),
            weight,
            offline: false,
            connections,
            addresses: 0,
            latest_timestamp: 1,
        }
    }

    fn chosen(balancer: &Balancer, comets: &Arc<Vec<CometNode>>, region: &str) -> Vec<(String, i64)> {
        balancer.choose(comets, region, 1.6);
        let state = balancer.0.lock();
        state.nodes.iter().map(|node| (node.comet.server.to_string(), node.current)).collect()
    }

    fn named(expected: &[(&str, i64)]) -> Vec<(String, i64)> {
        expected.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect()
    }

    #[test]
    fn the_three_cities() {
        let comets = Arc::new(vec![
            comet("01", "bj", 10, 240_590),
            comet("02", "sh", 10, 375_420),
            comet("03", "gz", 10, 293_430),
        ]);
        let check = |region, expected: &[(&str, i64)]| {
            assert_eq!(chosen(&Balancer::default(), &comets, region), named(expected), "{region}");
        };
        check("sh", &[("02", 216_502), ("01", 182_862), ("03", 156_442)]);
        check("", &[("01", 182_862), ("03", 156_442), ("02", 115_447)]);
    }

    #[test]
    fn each_choice_shifts_the_balance() {
        let comets = Arc::new(vec![comet("a", "x", 10, 100), comet("b", "x", 30, 100)]);
        let balancer = Balancer::default();
        for expected in [[("b", 130), ("a", 10)], [("b", 130), ("a", 10)], [("b", 130), ("a", 11)]] {
            assert_eq!(chosen(&balancer, &comets, ""), named(&expected));
        }
    }

    #[test]
    fn without_connections_everything_is_equal_and_ordered_by_name() {
        let comets = Arc::new(vec![comet("b", "", 10, 0), comet("a", "", 30, 0)]);
        assert_eq!(chosen(&Balancer::default(), &comets, ""), named(&[("a", 0), ("b", 0)]));
    }

    #[test]
    fn without_weights_the_emptiest_comes_first() {
        let comets = Arc::new(vec![comet("a", "", 0, 100), comet("b", "", 0, 10), comet("c", "", 0, 400)]);
        let order: Vec<String> =
            chosen(&Balancer::default(), &comets, "").into_iter().map(|(name, _)| name).collect();
        assert_eq!(order, ["b", "a", "c"]);
    }

    #[test]
    fn hostile_numbers_do_no_harm() {
        let comets = Arc::new(vec![
            comet("a", "", i32::MIN, u64::MAX),
            comet("b", "", i32::MAX, 1),
            comet("c", "", -1, 0),
        ]);
        let balancer = Balancer::default();
        for _ in 0..3 {
            assert_eq!(balancer.choose(&comets, "", 1.6).len(), 3);
        }
    }

    #[test]
    fn an_unchanged_record_keeps_its_clients_and_a_new_one_does_not() {
        let first = vec![comet("a", "x", 10, 5), comet("b", "x", 10, 100)];
        let balancer = Balancer::default();
        for _ in 0..3 {
            balancer.choose(&Arc::new(first.clone()), "", 1.6);
        }
        let connections = |name: &str| {
            let state = balancer.0.lock();
            state.nodes.iter().find(|node| node.comet.server.as_str() == name).map(|node| node.connections)
        };
        assert_eq!(connections("a"), Some(8));
        let mut second = first.clone();
        second[0].latest_timestamp = 2;
        second[0].connections = 6;
        balancer.choose(&Arc::new(second), "", 1.6);
        assert_eq!(connections("a"), Some(7));
        assert_eq!(connections("b"), Some(100));
    }

    #[test]
    fn a_list_that_shrinks_too_fast_is_ignored() {
        let all: Vec<CometNode> = ["a", "b", "c", "d", "e"].map(|name| comet(name, "", 10, 1)).to_vec();
        let balancer = Balancer::default();
        let length = |comets: &[CometNode]| balancer.choose(&Arc::new(comets.to_vec()), "", 1.6).len();
        assert_eq!(length(&all), 5);
        assert_eq!(length(&all[..2]), 5);
        assert_eq!(length(&[]), 5);
        assert_eq!(length(&all[..3]), 3);
        let mut offline = all[..2].to_vec();
        offline[0].offline = true;
        assert_eq!(length(&offline), 3);
        assert_eq!(length(&all[..2]), 2);
    }
}
