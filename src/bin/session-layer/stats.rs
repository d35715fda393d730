//! `stats`: how many sessions there are, how large, and for how long.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::time::Duration;

use serde::Serialize;
use session_layer::SessionInfo;
use session_layer::store::SessionKey;

use crate::args::Stats;
use crate::failure::{Failure, Outcome};
use crate::output::{Bytes, Count, span};
use crate::progress::Progress;
use crate::stop::Stop;
use crate::stores;
use crate::walk::{Found, Walked, load, walk};

const SIZES: [u64; 7] = [
    256,
    1 << 10,
    4 << 10,
    16 << 10,
    64 << 10,
    256 << 10,
    1 << 20,
];
const HOUR: u64 = 60 * 60;
const LIFETIMES: [u64; 5] = [
    HOUR,
    24 * HOUR,
    7 * 24 * HOUR,
    31 * 24 * HOUR,
    90 * 24 * HOUR,
];

/// What has been counted; the JSON form is this struct.
#[derive(Debug, Serialize)]
struct Tally {
    live: u64,
    /// Tombstones.
    ended: u64,
    unreadable: u64,
    /// Lists of users' sessions.
    indexes: u64,
    /// Of live sessions' payloads.
    bytes: u64,
    largest: u64,
    /// Live sessions by the bytes of their payloads.
    sizes: Vec<Bucket>,
    /// Live sessions by the seconds they have left.
    expiring_within: Vec<Bucket>,
}

/// Those that are larger than the bucket before, and no larger than this one.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Bucket {
    /// `None`: however large.
    up_to: Option<u64>,
    sessions: u64,
}

fn buckets(bounds: &[u64]) -> Vec<Bucket> {
    let bounds = bounds.iter().copied().map(Some).chain([None]);
    bounds.map(|up_to| Bucket { up_to, sessions: 0 }).collect()
}

fn put(buckets: &mut [Bucket], value: u64) {
    let fits = |bucket: &&mut Bucket| bucket.up_to.is_none_or(|bound| value <= bound);
    if let Some(bucket) = buckets.iter_mut().find(fits) {
        bucket.sessions += 1;
    }
}

impl Tally {
    fn new() -> Self {
        Self {
            live: 0,
            ended: 0,
            unreadable: 0,
            indexes: 0,
            bytes: 0,
            largest: 0,
            sizes: buckets(&SIZES),
            expiring_within: buckets(&LIFETIMES),
        }
    }

    /// Counts what is there; whether it is unreadable.
    fn count(&mut self, found: &Found) -> bool {
        let info = match found {
            Found::Absent => return false,
            Found::Unreadable => None,
            Found::Record(record) => SessionInfo::of(record).map(|info| (info, record)),
        };
        let Some((info, record)) = info else {
            self.unreadable += 1;
            return true;
        };
        if info.is_ended() {
            self.ended += 1;
            return false;
        }
        if info.is_user_index() {
            self.indexes += 1;
            return false;
        }
        let bytes = record.payload().len() as u64;
        let left = record.ttl();
        self.live += 1;
        self.bytes += bytes;
        self.largest = self.largest.max(bytes);
        put(&mut self.sizes, bytes);
        let begun = u64::from(left.subsec_nanos() > 0);
        put(
            &mut self.expiring_within,
            left.as_secs().saturating_add(begun),
        );
        false
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "live        {}", Count(self.live))?;
        writeln!(out, "ended       {}", Count(self.ended))?;
        writeln!(out, "unreadable  {}", Count(self.unreadable))?;
        writeln!(out, "indexes     {}", Count(self.indexes))?;
        let average = self.bytes.checked_div(self.live).unwrap_or(0);
        writeln!(
            out,
            "data        {}, on average {}, at most {}",
            Bytes(self.bytes),
            Bytes(average),
            Bytes(self.largest)
        )?;
        histogram(out, "size", &self.sizes, |bound| Bytes(bound).to_string())?;
        histogram(out, "expiring within", &self.expiring_within, |bound| {
            span(Duration::from_secs(bound))
        })
    }
}

/// The buckets down to the last that is not empty.
fn histogram(
    out: &mut impl Write,
    title: &str,
    buckets: &[Bucket],
    bound: impl Fn(u64) -> String,
) -> io::Result<()> {
    let Some(last) = buckets.iter().rposition(|bucket| bucket.sessions > 0) else {
        return Ok(());
    };
    writeln!(out, "{title}")?;
    for bucket in &buckets[..=last] {
        let bound = bucket.up_to.map_or_else(|| "more".to_owned(), &bound);
        writeln!(
            out,
            "  {bound:10}{:>12}",
            Count(bucket.sessions).to_string()
        )?;
    }
    Ok(())
}

pub(crate) async fn run(args: Stats, stop: Stop) -> Result<Outcome, Failure> {
    let opened = stores::open_existing(args.store.as_deref()).await?;
    let progress = Progress::new("reading");
    let mut tally = Tally::new();
    let store = opened.store.clone();
    let walked = walk(
        &opened.store,
        args.concurrency,
        &stop,
        |key: SessionKey| {
            let store = store.clone();
            async move {
                let found = load(&store, &key).await.map_err(|error| {
                    Failure::of_store(format_args!("cannot read session {key}"), error)
                })?;
                Ok((key, found))
            }
        },
        |(key, found)| {
            if tally.count(&found) {
                progress.say(&format!("unreadable: {key}"));
            }
            progress.one_more();
            Ok(ControlFlow::Continue(()))
        },
    )
    .await?;
    drop(progress);
    if walked == Walked::Interrupted {
        eprintln!("session-layer: interrupted; the numbers would be of a part only");
        return Ok(Outcome::Interrupted);
    }
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, &tally).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        tally.write(&mut out)?;
    }
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use session_layer::store::{Record, Revision};

    use super::*;

    fn record(payload: &'static [u8], left: Duration) -> Found {
        Found::Record(Record::new(Revision::generate(), payload.into(), left))
    }

    #[test]
    fn each_kind_of_record_is_counted_as_what_it_is() {
        let mut tally = Tally::new();
        let long = Duration::from_secs(1000 * 24 * HOUR);
        assert!(!tally.count(&Found::Absent));
        assert!(tally.count(&Found::Unreadable));
        assert!(tally.count(&record(b"no session", long)));
        assert!(!tally.count(&record(br#"{"_meta":{"ended":true}}"#, long)));
        let index = br#"{"_meta":{"ended":true,"index":true}}"#;
        assert!(!tally.count(&record(index, long)));
        assert!(!tally.count(&record(br#"{"a":1}"#, long)));
        assert!(!tally.count(&record(br#"{"ab":1}"#, Duration::from_secs(HOUR))));
        assert_eq!((tally.live, tally.ended, tally.unreadable), (2, 1, 2));
        assert_eq!(tally.indexes, 1);
        assert_eq!((tally.bytes, tally.largest), (15, 8));
        assert_eq!(tally.sizes[0].sessions, 2);
        assert_eq!(tally.expiring_within[0].sessions, 1);
        assert_eq!(tally.expiring_within[5].sessions, 1);
    }

    #[test]
    fn a_value_belongs_to_the_first_bucket_that_holds_it() {
        let mut buckets = buckets(&[10, 20]);
        for value in [0, 10, 11, 21, u64::MAX] {
            put(&mut buckets, value);
        }
        let counts: Vec<_> = buckets.iter().map(|bucket| bucket.sessions).collect();
        assert_eq!(counts, [2, 1, 2]);
    }

    #[test]
    fn an_empty_store_has_no_distribution() {
        let mut out = Vec::new();
        Tally::new().write(&mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        assert!(out.starts_with("live        0\n"), "{out}");
        assert!(!out.contains("size"), "{out}");
    }
}
