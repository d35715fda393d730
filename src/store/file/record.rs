//! The form of a record file: a head of fixed size, then the payload.
//!
//! ```text
//! 0  magic  "sl-file"      7 bytes
//! 7  version               1
//! 8  expiry, unix ms       8, little-endian
//! 16 revision             16
//! 32 payload length        8, little-endian
//! 40 payload check         8, SHA-256 of the payload, cut off
//! 48 head check            8, SHA-256 of the key and the 48 bytes before, cut off
//! 56 payload
//! ```

use sha2::{Digest, Sha256};

use crate::store::{Revision, SessionKey};

const MAGIC: &[u8; 7] = b"sl-file";
const VERSION: u8 = 1;

type Check = [u8; 8];

/// What a record file says about its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Head {
    pub(super) expiry: i64,
    pub(super) revision: Revision,
    len: u64,
    payload_check: Check,
}

/// Why a head cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unreadable {
    /// Written by a version of this crate that this one does not know.
    Foreign,
    /// Cut short, overwritten, or never a record.
    Garbage,
}

impl Head {
    pub(super) const LEN: usize = 56;

    pub(super) fn payload_len(&self) -> u64 {
        self.len
    }

    pub(super) fn decode(key: &SessionKey, bytes: &[u8; Self::LEN]) -> Result<Self, Unreadable> {
        if !bytes.starts_with(MAGIC) {
            return Err(Unreadable::Garbage);
        }
        if bytes[MAGIC.len()] != VERSION {
            return Err(Unreadable::Foreign);
        }
        if bytes[48..56] != head_check(key, &bytes[..48]) {
            return Err(Unreadable::Garbage);
        }
        Ok(Self {
            expiry: i64::from_le_bytes(array(&bytes[8..16])),
            revision: Revision::from_bytes(array(&bytes[16..32])),
            len: u64::from_le_bytes(array(&bytes[32..40])),
            payload_check: array(&bytes[40..48]),
        })
    }

    pub(super) fn matches(&self, payload: &[u8]) -> bool {
        self.len == payload.len() as u64 && self.payload_check == check(payload)
    }
}

/// A record on its way to a file: the payload with room for the head in front, so that the file is
/// written at one go.
pub(super) struct Draft {
    revision: Revision,
    bytes: Vec<u8>,
}

impl Draft {
    pub(super) fn new(revision: Revision, payload: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(Head::LEN + payload.len());
        bytes.resize(Head::LEN, 0);
        bytes.extend_from_slice(payload);
        Self { revision, bytes }
    }

    /// The whole file.
    pub(super) fn seal(mut self, key: &SessionKey, expiry: i64) -> Vec<u8> {
        let (head, payload) = self.bytes.split_at_mut(Head::LEN);
        head[..7].copy_from_slice(MAGIC);
        head[7] = VERSION;
        head[8..16].copy_from_slice(&expiry.to_le_bytes());
        head[16..32].copy_from_slice(self.revision.as_bytes());
        head[32..40].copy_from_slice(&(payload.len() as u64).to_le_bytes());
        head[40..48].copy_from_slice(&check(payload));
        let sum = head_check(key, &head[..48]);
        head[48..56].copy_from_slice(&sum);
        self.bytes
    }
}

fn check(bytes: &[u8]) -> Check {
    array(&Sha256::digest(bytes)[..8])
}

/// The key is part of it: a file copied under another name is not a record.
fn head_check(key: &SessionKey, head: &[u8]) -> Check {
    let mut hash = Sha256::new();
    hash.update(key.as_str());
    hash.update(head);
    array(&hash.finalize()[..8])
}

/// Copies a slice whose length the caller has fixed to `N`; a longer one would be cut, a shorter one
/// padded.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    for (to, from) in array.iter_mut().zip(bytes) {
        *to = *from;
    }
    array
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(letter: &str) -> SessionKey {
        letter.repeat(SessionKey::LEN).parse().unwrap()
    }

    fn head_of(file: &[u8]) -> [u8; Head::LEN] {
        file[..Head::LEN].try_into().unwrap()
    }

    #[test]
    fn a_record_round_trips() {
        let revision = Revision::generate();
        let file = Draft::new(revision, b"payload").seal(&key("k"), 1_700_000_000_123);
        let head = Head::decode(&key("k"), &head_of(&file)).unwrap();
        assert_eq!(head.expiry, 1_700_000_000_123);
        assert_eq!(head.revision, revision);
        assert_eq!(head.payload_len(), 7);
        assert!(head.matches(&file[Head::LEN..]));
    }

    #[test]
    fn one_changed_bit_anywhere_is_noticed() {
        let file = Draft::new(Revision::generate(), b"payload").seal(&key("k"), 42);
        for bit in 0..file.len() * 8 {
            let mut file = file.clone();
            file[bit / 8] ^= 1 << (bit % 8);
            let intact = Head::decode(&key("k"), &head_of(&file))
                .is_ok_and(|head| head.matches(&file[Head::LEN..]));
            assert!(!intact, "bit {bit}");
        }
    }

    #[test]
    fn a_file_under_another_name_is_garbage() {
        let file = Draft::new(Revision::generate(), b"payload").seal(&key("k"), 42);
        assert_eq!(
            Head::decode(&key("K"), &head_of(&file)),
            Err(Unreadable::Garbage)
        );
    }

    #[test]
    fn a_later_version_is_told_from_garbage() {
        let mut file = Draft::new(Revision::generate(), b"").seal(&key("k"), 42);
        file[7] = 2;
        assert_eq!(
            Head::decode(&key("k"), &head_of(&file)),
            Err(Unreadable::Foreign)
        );
    }
}
