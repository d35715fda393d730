//! Slots: where a key belongs, and how servers say who holds what.

use std::collections::BTreeSet;
use std::fmt;

use ::redis::{ConnectionAddr, ErrorKind, RedisError, Value};

const SLOTS: u16 = 16_384;

/// Host and port.
pub(super) type Address = (String, u16);

/// The slot of a key, given in two parts, without braces, which would make a part of it count alone.
pub(in super::super) fn slot(key: [&[u8]; 2]) -> u16 {
    let mut crc = 0_u16;
    for &byte in key.into_iter().flatten() {
        crc ^= u16::from(byte) << 8;
        for _ in 0..8 {
            let carry = crc & 0x8000 != 0;
            crc <<= 1;
            if carry {
                crc ^= 0x1021;
            }
        }
    }
    crc % SLOTS
}

/// Slots that one server holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) holder: Address,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, port) = &self.holder;
        write!(f, "{}-{}@{host}:{port};", self.first, self.last)
    }
}

/// What a server knows of its cluster.
pub(super) struct Known {
    /// In the order of the slots.
    pub(super) ranges: Vec<Range>,
    /// All servers, replicas too.
    pub(super) members: BTreeSet<Address>,
}

/// Reads the answer to CLUSTER SLOTS, which `asked` has given.
pub(super) fn known(answer: &Value, asked: &str) -> Result<Known, RedisError> {
    read(answer, asked).ok_or_else(|| (ErrorKind::Parse, "no table of slots").into())
}

fn read(answer: &Value, asked: &str) -> Option<Known> {
    let Value::Array(rows) = answer else {
        return None;
    };
    let mut known = Known {
        ranges: Vec::with_capacity(rows.len()),
        members: BTreeSet::new(),
    };
    for row in rows {
        let Value::Array(row) = row else { return None };
        let [first, last, servers @ ..] = &row[..] else {
            return None;
        };
        known.ranges.push(Range {
            first: number(first)?,
            last: number(last)?,
            holder: server(servers.first()?, asked)?,
        });
        let servers = servers.iter().filter_map(|named| server(named, asked));
        known.members.extend(servers);
    }
    known.ranges.sort_by_key(|range| range.first);
    Some(known)
}

fn number(value: &Value) -> Option<u16> {
    match value {
        Value::Int(number) => u16::try_from(*number).ok(),
        _ => None,
    }
}

fn server(value: &Value, asked: &str) -> Option<Address> {
    let Value::Array(parts) = value else {
        return None;
    };
    let [host, port, ..] = &parts[..] else {
        return None;
    };
    let host = match host {
        Value::BulkString(host) => std::str::from_utf8(host).ok()?,
        Value::SimpleString(host) => host,
        // It does not know its own name.
        Value::Nil => "",
        _ => return None,
    };
    Some((named(host, asked), number(port)?))
}

fn named(host: &str, asked: &str) -> String {
    let host = if matches!(host, "" | "?") {
        asked
    } else {
        host
    };
    host.to_owned()
}

/// The address in a redirection that `asked` has given.
pub(super) fn address(text: &str, asked: &str) -> Option<Address> {
    let (host, port) = text.rsplit_once(':')?;
    Some((named(host, asked), port.parse().ok()?))
}

pub(super) fn address_of(address: &ConnectionAddr) -> Option<Address> {
    match address {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            Some((host.clone(), *port))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_slots_that_servers_give_them() {
        // CLUSTER KEYSLOT of Redis 7.
        for (key, expected) in [
            ("", 0),
            ("123456789", 12739),
            ("foo", 12182),
            ("bar", 5061),
            ("session:LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ", 1792),
        ] {
            let (start, end) = key.as_bytes().split_at(key.len() / 3);
            assert_eq!(slot([start, end]), expected, "{key}");
        }
    }

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn row(first: i64, last: i64, host: Value, port: i64) -> Value {
        let primary = Value::Array(vec![
            host,
            Value::Int(port),
            bulk("id"),
            Value::Array(vec![]),
        ]);
        let replica = Value::Array(vec![bulk("10.0.0.9"), Value::Int(1), bulk("id")]);
        Value::Array(vec![Value::Int(first), Value::Int(last), primary, replica])
    }

    #[test]
    fn tables_are_read_and_sorted() {
        let answer = Value::Array(vec![
            row(100, 16_383, bulk("10.0.0.2"), 7001),
            row(0, 99, Value::Nil, 7000),
        ]);
        let known = known(&answer, "asked").unwrap();
        assert_eq!(known.ranges[0].to_string(), "0-99@asked:7000;");
        assert_eq!(known.ranges[1].to_string(), "100-16383@10.0.0.2:7001;");
        let members: Vec<_> = known.members.iter().map(|(host, _)| &**host).collect();
        assert_eq!(members, ["10.0.0.2", "10.0.0.9", "asked"]);
    }

    #[test]
    fn what_is_no_table_is_refused() {
        for answer in [
            Value::Nil,
            Value::Array(vec![Value::Nil]),
            Value::Array(vec![Value::Array(vec![Value::Int(1)])]),
            Value::Array(vec![row(-1, 5, bulk("h"), 1)]),
            Value::Array(vec![row(0, 5, bulk("h"), 65_536)]),
            Value::Array(vec![row(0, 5, Value::Int(3), 1)]),
        ] {
            assert!(known(&answer, "asked").is_err(), "{answer:?}");
        }
        let none = known(&Value::Array(vec![]), "asked").unwrap();
        assert_eq!(none.ranges, []);
    }

    #[test]
    fn redirections_name_an_address() {
        let at = |text| address(text, "asked");
        assert_eq!(at("10.0.0.1:7000"), Some(("10.0.0.1".to_owned(), 7000)));
        assert_eq!(at("::1:7000"), Some(("::1".to_owned(), 7000)));
        assert_eq!(at(":7000"), Some(("asked".to_owned(), 7000)));
        assert_eq!(at("?:7000"), Some(("asked".to_owned(), 7000)));
        assert_eq!(at("10.0.0.1"), None);
        assert_eq!(at("10.0.0.1:x"), None);
    }
}
