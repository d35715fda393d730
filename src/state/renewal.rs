//! How long a session lives, and when that is to be renewed.

use std::time::Duration;

use super::login;
use crate::config::{MAX_LIFETIME, Policy};
use crate::payload::Meta;

/// How long a session is to live from `now` on: its idle lifetime, cut short by the absolute one.
/// `None` if that is over.
pub(crate) fn full_ttl(policy: &Policy, meta: &Meta, now: u64) -> Option<Duration> {
    let idle = meta
        .lifetime
        .map_or(policy.idle, Duration::from_millis)
        .min(MAX_LIFETIME);
    let ttl = match policy.absolute {
        None => idle,
        Some(absolute) => {
            let age = Duration::from_millis(now.saturating_sub(meta.created.unwrap_or(now)));
            idle.min(absolute.checked_sub(age)?)
        }
    };
    let ttl = match &meta.user {
        None => ttl,
        Some(user) => ttl.min(login::time_left(user, now)?),
    };
    (!ttl.is_zero()).then_some(ttl)
}

/// Whether so much of `full` has passed that it is to be renewed.
#[inline]
pub(crate) fn is_due(policy: &Policy, full: Duration, passed: Duration) -> bool {
    policy.refresh_share == 0.0 || micros(passed) > micros(full) * policy.refresh_share
}

/// `Duration::as_secs_f64` divides, which takes longer than all the rest.
fn micros(time: Duration) -> f64 {
    (time.as_secs() * 1_000_000 + u64::from(time.subsec_micros())) as f64
}

/// The same for a cookie of this age. Where reading renews nothing, writing does.
pub(crate) fn is_cookie_due(policy: &Policy, full: Duration, age: Duration) -> bool {
    if policy.renews_by_reading() {
        return is_due(policy, full, age);
    }
    age > full / 10
}
