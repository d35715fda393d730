//! The commands of the store. Each has one key, and does all it does at once.

use ::redis::{Cmd, Script, cmd};

use super::record::{Encoded, HEADER_LEN, Parts, STAMP_LEN, millis, renewal, stamp};
use crate::store::{NewRecord, Revision};

/// What scripts answer.
pub(super) const DONE: i64 = 1;
pub(super) const CONFLICT: i64 = 0;
pub(super) const GONE: i64 = -1;
pub(super) const CORRUPT: i64 = -2;

/// Compares the stored stamp with ARGV[1]. What has another version byte is not a record.
macro_rules! guarded {
    ($body:literal) => {
        concat!(
            "local stamp = redis.call('GETRANGE', KEYS[1], 0, 16) ",
            "if stamp ~= ARGV[1] then ",
            "if stamp == '' then return -1 end ",
            "if #stamp < 17 or string.byte(stamp) ~= string.byte(ARGV[1]) then return -2 end ",
            "return 0 end ",
            $body,
            " return 1"
        )
    };
}

/// ARGV: stamp, value, lifetime, and a fourth when the write ends a session. PEXPIRE is allowed when
/// the memory is full, and lets what follows in the same script pass: a full server refuses no
/// logout.
const UPDATE: &str = guarded!(
    "if ARGV[4] then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end \
     redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])"
);

/// ARGV: stamp, renewal, lifetime. In this order, for the same reason.
const TOUCH: &str = guarded!(
    "redis.call('PEXPIRE', KEYS[1], ARGV[3]) \
     redis.call('SETRANGE', KEYS[1], 17, ARGV[2])"
);

/// The scripts and their names.
pub(super) struct Scripts {
    update: Script,
    touch: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            update: Script::new(UPDATE),
            touch: Script::new(TOUCH),
        }
    }

    pub(super) fn update(
        &self,
        key: Parts<'_, 2>,
        seen: Revision,
        new: &NewRecord<'_>,
        now: u64,
    ) -> Call {
        let value = Encoded::new(new, now);
        let room = key.len() + STAMP_LEN + value.parts().len() + 128;
        let mut call = Call::new(&self.update, UPDATE, &key, 8, room);
        call.cmd
            .arg(&stamp(seen)[..])
            .arg(value.parts())
            .arg(millis(new.ttl()));
        if new.is_ending() {
            call.cmd.arg(1);
        }
        call
    }

    pub(super) fn touch(&self, key: Parts<'_, 2>, seen: Revision, ttl: u64, now: u64) -> Call {
        let mut call = Call::new(&self.touch, TOUCH, &key, 7, key.len() + 192);
        call.cmd
            .arg(&stamp(seen)[..])
            .arg(&renewal(now, ttl)[..])
            .arg(ttl);
        call
    }
}

/// A call of a script that the server is expected to know.
pub(in crate::store) struct Call {
    pub(in crate::store) cmd: Cmd,
    text: &'static str,
}

impl Call {
    pub(in crate::store) fn new(
        script: &Script,
        text: &'static str,
        key: &Parts<'_, 2>,
        arguments: usize,
        room: usize,
    ) -> Self {
        let mut cmd = Cmd::with_capacity(arguments, room);
        cmd.arg("EVALSHA").arg(script.get_hash()).arg(1).arg(key);
        Self { cmd, text }
    }

    /// The same with the text of the script, for a server that does not know it (and will from then
    /// on).
    pub(super) fn with_text(&self) -> Cmd {
        let mut full = cmd("EVAL");
        full.arg(self.text);
        for argument in self.cmd.args_iter().skip(2) {
            if let ::redis::Arg::Simple(argument) = argument {
                full.arg(argument);
            }
        }
        full
    }
}

pub(super) fn load(key: Parts<'_, 2>) -> Cmd {
    let mut cmd = Cmd::with_capacity(2, key.len() + 16);
    cmd.arg("GET").arg(key);
    cmd
}

pub(super) fn create(key: Parts<'_, 2>, new: &NewRecord<'_>, now: u64) -> Cmd {
    let value = Encoded::new(new, now);
    let room = key.len() + HEADER_LEN + new.payload().len() + 64;
    let mut cmd = Cmd::with_capacity(6, room);
    cmd.arg("SET").arg(key).arg(value.parts());
    cmd.arg("NX").arg("PX").arg(millis(new.ttl()));
    cmd
}

pub(super) fn delete(key: Parts<'_, 2>) -> Cmd {
    let mut cmd = Cmd::with_capacity(2, key.len() + 16);
    cmd.arg("DEL").arg(key);
    cmd
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn arguments(cmd: &Cmd) -> Vec<Vec<u8>> {
        cmd.args_iter()
            .map(|argument| match argument {
                ::redis::Arg::Simple(bytes) => bytes.to_vec(),
                _ => panic!("no argument"),
            })
            .collect()
    }

    #[test]
    fn the_text_of_a_script_is_sent_with_the_same_arguments() {
        let new = NewRecord::new(
            Revision::from_bytes([2; 16]),
            b"data",
            Duration::from_secs(1),
        );
        let seen = Revision::from_bytes([3; 16]);
        for (new, count) in [(new, 7), (new.with_ending(true), 8)] {
            let call = Scripts::new().update(Parts([b"session:", b"key"]), seen, &new, 5);
            let (short, long) = (arguments(&call.cmd), arguments(&call.with_text()));
            assert_eq!(short.len(), count);
            assert_eq!(short[0], b"EVALSHA");
            assert_eq!(
                (&long[0][..], &long[1][..]),
                (&b"EVAL"[..], UPDATE.as_bytes())
            );
            assert_eq!(short[2..], long[2..]);
            assert_eq!(short[3], b"session:key");
            assert_eq!(short[4], [&[1][..], &[3; 16]].concat());
            assert!(short[5].ends_with(b"data"));
            assert_eq!(short[6], b"1000");
        }
    }
}
