//! The list of a user's sessions, as it is stored: which, and in what order they were logged in to.

use bytes::Bytes;

use crate::id::SessionKey;
use crate::payload::{self, Format, Head, Limits, Payload};

/// More than any list comes to.
const LIMITS: Limits = Limits {
    bytes: 4 << 20,
    keys: 1 << 15,
    depth: 1,
};

/// How many bytes a listed session takes, at most, and as much again for those that have ended.
pub(crate) const ROOM: usize = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: SessionKey,
    /// When its user logged in, in milliseconds since 1970; a little later where clocks differ, so
    /// that no two logins are at the same time. Entries of one time are one session, which is getting
    /// a new id or has got it.
    pub(crate) at: u64,
}

/// A hint where to look for a user's sessions. Whose a session is, it says itself.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Index {
    format: Format,
    /// Those that were not looked at for the longest time come first.
    entries: Vec<Entry>,
}

impl Index {
    pub(crate) fn new(format: Format) -> Self {
        Self {
            format,
            entries: Vec::new(),
        }
    }

    /// `None` if this is no such list.
    pub(crate) fn parse(bytes: &Bytes) -> Option<Self> {
        let Ok((Head::Index, payload)) = Payload::parse(bytes.clone(), &LIMITS) else {
            return None;
        };
        let format = payload.format();
        let entries = payload.iter().filter_map(|(key, at)| {
            Some(Entry {
                key: key.parse().ok()?,
                at: payload::decode_value(format, at).ok()?,
            })
        });
        Some(Self {
            format,
            entries: entries.collect(),
        })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let times = self.entries.iter().filter_map(|entry| {
            // A number always has a form.
            let at = payload::encode_value(self.format, &entry.at, &LIMITS).ok()?;
            Some((entry.key, at))
        });
        let times: Vec<_> = times.collect();
        let entries = times.iter().map(|(key, at)| (key.as_str(), &at[..]));
        payload::index_map(self.format, entries)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = SessionKey> + '_ {
        self.entries.iter().map(|entry| entry.key)
    }

    pub(crate) fn contains(&self, key: &SessionKey) -> bool {
        self.keys().any(|listed| listed == *key)
    }

    pub(crate) fn remove(&mut self, is_dead: impl Fn(&SessionKey) -> bool) {
        self.entries.retain(|entry| !is_dead(&entry.key));
    }

    /// Moves those that were looked at behind those that were not.
    pub(crate) fn looked_at(&mut self, was: impl Fn(&SessionKey) -> bool) {
        self.entries.sort_by_key(|entry| was(&entry.key));
    }

    /// Adds a session that its user has just logged in to, in the place of `old`: from now on the
    /// newest.
    pub(crate) fn add_login(&mut self, key: SessionKey, old: Option<&SessionKey>, now: u64) {
        let newest = self.entries.iter().map(|entry| entry.at).max();
        let at = newest.map_or(now, |newest| now.max(newest.saturating_add(1)));
        // Until it is buried it is listed beside the new one, and must not count twice.
        for entry in &mut self.entries {
            if Some(&entry.key) == old {
                entry.at = at;
            }
        }
        self.entries.push(Entry { key, at });
    }

    /// Adds what `old` is going to be rotated into: as old as that, or else `at`.
    pub(crate) fn add_rotated(&mut self, key: SessionKey, old: Option<&SessionKey>, at: u64) {
        let before = self.entries.iter().find(|entry| Some(&entry.key) == old);
        let at = before.map_or(at, |before| before.at);
        self.entries.push(Entry { key, at });
    }

    /// What is listed of these logins.
    pub(crate) fn of_logins(&self, logins: &[u64]) -> Vec<Entry> {
        let entries = self.entries.iter();
        let found = entries.filter(|entry| logins.contains(&entry.at));
        found.copied().collect()
    }

    /// The oldest logins, so many that at most `limit` are left. Those in `keep` are not among them:
    /// the first counts as one of those that are left, the others as gone. Nor is a login that is
    /// newer than the first: whoever has made that ends what it is too many for.
    pub(crate) fn beyond(&self, limit: usize, keep: &[SessionKey]) -> Vec<Entry> {
        let entries = self.entries.iter();
        let first = entries
            .clone()
            .find(|entry| Some(&entry.key) == keep.first());
        let others = entries.filter(|entry| !keep.contains(&entry.key));
        let mut others: Vec<_> = others.copied().collect();
        others.sort_by_key(|entry| entry.at);
        let sessions = || others.chunk_by(|one, next| one.at == next.at);
        let excess = (sessions().count() + 1).saturating_sub(limit);
        let oldest = sessions().take(excess).flatten().copied();
        oldest
            .filter(|entry| first.is_none_or(|first| entry.at < first.at))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::WIDEST;

    fn key(n: u32) -> SessionKey {
        format!("{n:043}").parse().unwrap()
    }

    fn list(format: Format, logins: impl IntoIterator<Item = u32>) -> Index {
        let mut index = Index::new(format);
        for n in logins {
            index.add_login(key(n), None, 1_800_000_000_000);
        }
        index
    }

    fn beyond(index: &Index, limit: usize, keep: &[SessionKey]) -> Vec<SessionKey> {
        let excess = index.beyond(limit, keep);
        excess.iter().map(|entry| entry.key).collect()
    }

    #[test]
    fn a_list_comes_back_as_it_was_and_is_no_session() {
        for format in [Format::Json, Format::MessagePack] {
            for count in [0, 1, 20, 1_000] {
                let index = list(format, 0..count);
                let bytes = Bytes::from(index.encode());
                assert!(
                    bytes.len() <= 100 + ROOM / 2 * count as usize,
                    "{format:?} {count}"
                );
                assert_eq!(Index::parse(&bytes), Some(index));
                let (head, _) = Payload::parse(bytes, &WIDEST).unwrap();
                assert_eq!(head, Head::Index);
            }
        }
    }

    #[test]
    fn what_is_no_list_is_none() {
        let meta = payload::Meta::default();
        let session = Payload::empty(Format::MessagePack).changed(&meta, &[]);
        assert_eq!(Index::parse(session.bytes()), None);
        let tombstone = payload::tombstone(Format::Json, Some(&key(1)));
        assert_eq!(Index::parse(&tombstone.into()), None);
        assert_eq!(Index::parse(&Bytes::new()), None);
    }

    #[test]
    fn entries_that_nobody_can_read_are_passed_over() {
        let text = format!(
            r#"{{"_meta":{{"index":true}},"short":1,"{}":"soon","{}":7}}"#,
            key(1),
            key(2)
        );
        let index = Index::parse(&text.into()).unwrap();
        assert!(index.keys().eq([key(2)]));
    }

    #[test]
    fn a_login_is_the_newest_whatever_the_clock_says() {
        let mut index = list(Format::Json, 0..3);
        index.add_login(key(9), None, 5);
        assert_eq!(beyond(&index, 3, &[key(9)]), [key(0)]);
        index.add_login(key(8), None, 1_900_000_000_000);
        assert_eq!(beyond(&index, 1, &[]), [0, 1, 2, 9, 8].map(key));
    }

    #[test]
    fn a_login_ends_none_that_is_newer() {
        let index = list(Format::Json, 0..4);
        assert_eq!(beyond(&index, 1, &[key(2)]), [0, 1].map(key));
        assert_eq!(beyond(&index, 3, &[key(2)]), [key(0)]);
        assert_eq!(beyond(&index, 1, &[key(0)]), []);
    }

    #[test]
    fn a_session_that_is_listed_twice_counts_once_and_goes_whole() {
        let mut index = list(Format::Json, 0..2);
        index.add_rotated(key(7), Some(&key(0)), 5);
        assert_eq!(beyond(&index, 3, &[key(9)]), []);
        assert_eq!(beyond(&index, 2, &[key(9)]), [0, 7].map(key));
        // Logged in to again, it is the newest under both keys.
        index.add_login(key(8), Some(&key(1)), 5);
        assert_eq!(beyond(&index, 2, &[key(9)]), [0, 7].map(key));
        assert_eq!(beyond(&index, 1, &[key(9)]), [0, 7, 1, 8].map(key));
        let [entry] = index.beyond(1, &[key(9)])[..1] else {
            unreachable!()
        };
        let of_login = index.of_logins(&[entry.at]);
        assert!(of_login.iter().map(|entry| entry.key).eq([0, 7].map(key)));
    }

    #[test]
    fn a_rotated_session_is_as_old_as_before() {
        let mut index = list(Format::Json, 0..3);
        index.add_rotated(key(7), Some(&key(0)), 5);
        index.remove(|dead| *dead == key(0));
        assert_eq!(beyond(&index, 3, &[key(9)]), [key(7)]);
        // One that was not listed is as old as it says.
        index.add_rotated(key(6), Some(&key(99)), 5);
        assert_eq!(beyond(&index, 4, &[key(9)]), [key(6)]);
    }

    #[test]
    fn whoever_is_looked_at_is_not_looked_at_next() {
        let mut index = list(Format::Json, 0..4);
        index.looked_at(|was| *was == key(0) || *was == key(2));
        assert!(index.keys().eq([1, 3, 0, 2].map(key)));
    }
}
