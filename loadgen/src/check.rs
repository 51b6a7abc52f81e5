//! Checks each delivery when it arrives: whether it was to come, whether it has come, whether it stands in order.

use serde::Serialize;

use crate::plan::Plan;

/// What was wrong, over all subscriptions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Faults {
    pub lost: u64,
    pub duplicates: u64,
    pub misdelivered: u64,
    pub out_of_order: u64,
}

impl Faults {
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    pub fn add(&mut self, other: Self) {
        self.lost += other.lost;
        self.duplicates += other.duplicates;
        self.misdelivered += other.misdelivered;
        self.out_of_order += other.out_of_order;
    }
}

/// Of one Gateway.
#[derive(Debug)]
pub struct Checker {
    /// Of each subscription, also those of others: the last event that it got, and how many.
    last: Vec<u64>,
    count: Vec<u64>,
    faults: Faults,
    /// The first few in words.
    pub examples: Vec<String>,
}

const EXAMPLES_MAX: usize = 5;

impl Checker {
    pub fn new(plan: &Plan) -> Self {
        let zeros = vec![0; plan.subscriptions.len()];
        Self { last: zeros.clone(), count: zeros, faults: Faults::default(), examples: Vec::new() }
    }

    /// Event `n` has come for a subscription of this Gateway.
    pub fn delivered(&mut self, plan: &Plan, gateway: usize, subscription: u32, n: u64) {
        let is_own = plan.subscriptions.get(subscription as usize).is_some_and(|planned| planned.gateway == gateway);
        if n == 0 || !is_own || !plan.expects(n, subscription) {
            self.faults.misdelivered += 1;
            self.example(|| format!("event {n} was delivered for subscription {subscription}, which it doesn't match"));
            return;
        }
        let last = &mut self.last[subscription as usize];
        match n.cmp(last) {
            std::cmp::Ordering::Greater => {
                *last = n;
                self.count[subscription as usize] += 1;
            }
            std::cmp::Ordering::Equal => {
                self.faults.duplicates += 1;
                self.example(|| format!("event {n} came again for subscription {subscription}"));
            }
            // It may have come before or be late: only the order is certainly wrong. What never comes counts as lost.
            std::cmp::Ordering::Less => {
                let last = *last;
                self.faults.out_of_order += 1;
                self.example(|| format!("event {n} came for subscription {subscription} after event {last}"));
            }
        }
    }

    fn example(&mut self, what: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(what());
        }
    }

    /// The faults, if events 1 to `n` were sent.
    pub fn finish(&mut self, plan: &Plan, gateway: usize, n: u64) -> Faults {
        for (number, expected) in plan.expected(n).into_iter().enumerate() {
            if plan.subscriptions[number].gateway != gateway {
                continue;
            }
            let got = self.count[number];
            if got < expected {
                self.faults.lost += expected - got;
                self.example(|| format!("subscription {number} got {got} of {expected} events"));
            }
        }
        self.faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Profile;

    /// Everything as it should be, but for what `break_it` does to the deliveries.
    fn faults(break_it: impl FnOnce(&mut Vec<(u32, u64)>)) -> Faults {
        let plan = Plan::new(&Profile::load("orders").unwrap(), 1_000, 2, 3, "t");
        let n = 40_000;
        let of_gateway_0 = |number: &u32| plan.subscriptions[*number as usize].gateway == 0;
        let mut deliveries: Vec<(u32, u64)> = (1..=n)
            .flat_map(|n| plan.event(n).matches.iter().copied().filter(of_gateway_0).map(move |number| (number, n)))
            .collect();
        break_it(&mut deliveries);
        let mut checker = Checker::new(&plan);
        deliveries.iter().for_each(|(number, n)| checker.delivered(&plan, 0, *number, *n));
        let faults = checker.finish(&plan, 0, n);
        assert_eq!(faults.is_none(), checker.examples.is_empty());
        faults
    }

    #[test]
    fn each_fault_is_seen() {
        assert!(faults(|_| {}).is_none());
        assert_eq!(faults(|all| _ = all.remove(100)).lost, 1);
        assert_eq!(faults(|all| all.insert(100, all[99])), Faults { duplicates: 1, ..Faults::default() });
        assert_eq!(
            faults(|all| {
                let (number, n) = all[100];
                all.insert(100, (number, n + 1));
            })
            .misdelivered,
            1
        );
        // The next delivery of the same subscription comes before its turn.
        let swapped = faults(|all| {
            let next = all.iter().skip(101).position(|(number, _)| *number == all[100].0).unwrap() + 101;
            all.swap(100, next);
        });
        assert_eq!((swapped.out_of_order, swapped.lost > 0), (1, true));
        // Of another Gateway.
        assert_eq!(faults(|all| all.push((1, 1))).misdelivered, 1);
    }
}
