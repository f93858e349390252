//! Rate limits by address.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// The largest number of addresses with a bucket of their own; the others share one.
const REMEMBERED: usize = 10_000;

/// A token bucket for each address, with a capacity of one second.
#[derive(Debug, Default)]
pub struct Rates(Mutex<HashMap<Option<IpAddr>, (f64, Instant)>>);

impl Rates {
    pub fn allows(&self, rate: u32, address: Option<IpAddr>, now: Instant) -> bool {
        let rate = f64::from(rate);
        let full = |(left, since): &(f64, Instant)| left + now.duration_since(*since).as_secs_f64() * rate >= rate;
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= REMEMBERED && !buckets.contains_key(&address) {
            buckets.retain(|_, bucket| !full(bucket));
        }
        let known = buckets.len() < REMEMBERED || buckets.contains_key(&address);
        let (left, since) = buckets.entry(address.filter(|_| known)).or_insert((rate, now));
        *left = (*left + now.duration_since(*since).as_secs_f64() * rate).min(rate.max(1.0));
        *since = now;
        if *left < 1.0 {
            return false;
        }
        *left -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bucket_refills_at_the_rate_limit_and_is_per_address() {
        let (rates, start) = (Rates::default(), Instant::now());
        let [a, b] = [1u8, 2].map(|last| Some(IpAddr::from([10, 0, 0, last])));
        assert!((0..5).all(|_| rates.allows(5, a, start)));
        assert!(!rates.allows(5, a, start));
        assert!(rates.allows(5, b, start));
        assert!(rates.allows(5, a, start + Duration::from_millis(250)));
        assert!(!rates.allows(5, a, start + Duration::from_millis(250)));
    }

    #[test]
    fn the_number_of_buckets_is_bounded() {
        let (rates, start) = (Rates::default(), Instant::now());
        for n in 0..2 * REMEMBERED as u32 {
            rates.allows(5, Some(IpAddr::from(n.to_be_bytes())), start);
        }
        assert!(rates.0.lock().unwrap().len() <= REMEMBERED + 1);
    }
}
