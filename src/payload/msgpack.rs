//! The MessagePack form of a payload.

use std::io;

use rmp::encode::ValueWriteError;
use serde::Serialize;

use super::meta::{Fields, MAX_ENCODED, Name};
use super::{
    Buffer, Entry, Head, Index, Limits, META_KEY, Malformed, Meta, Shape, Span, cannot_encode,
};
use crate::error::SessionError;
use crate::few::Few;

const TRUNCATED: Malformed = Malformed("truncated");
/// The map's length, and `_meta`.
const MAX_HEAD: usize = MAX_ENCODED + 5;

/// One item without its children: where the next begins, and how many children follow.
fn item(bytes: &[u8], at: usize) -> Result<(usize, u64), Malformed> {
    let marker = *bytes.get(at).ok_or(TRUNCATED)?;
    let after = at as u64 + 1;
    let (next, children) = match marker {
        0x00..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => (after, 0),
        0x80..=0x8f => (after, 2 * u64::from(marker & 0x0f)),
        0x90..=0x9f => (after, u64::from(marker & 0x0f)),
        0xa0..=0xbf => (after + u64::from(marker & 0x1f), 0),
        0xc1 => return Err(Malformed("not MessagePack")),
        0xc4 | 0xd9 => (after + 1 + number::<1>(bytes, at)?, 0),
        0xc5 | 0xda => (after + 2 + number::<2>(bytes, at)?, 0),
        0xc6 | 0xdb => (after + 4 + number::<4>(bytes, at)?, 0),
        // An extension has its type before its bytes.
        0xc7 => (after + 1 + 1 + number::<1>(bytes, at)?, 0),
        0xc8 => (after + 2 + 1 + number::<2>(bytes, at)?, 0),
        0xc9 => (after + 4 + 1 + number::<4>(bytes, at)?, 0),
        0xca => (after + 4, 0),
        0xcb => (after + 8, 0),
        0xcc..=0xcf => (after + (1 << (marker - 0xcc)), 0),
        0xd0..=0xd3 => (after + (1 << (marker - 0xd0)), 0),
        0xd4..=0xd8 => (after + 1 + (1 << (marker - 0xd4)), 0),
        0xdc => (after + 2, number::<2>(bytes, at)?),
        0xdd => (after + 4, number::<4>(bytes, at)?),
        0xde => (after + 2, 2 * number::<2>(bytes, at)?),
        0xdf => (after + 4, 2 * number::<4>(bytes, at)?),
    };
    if next > bytes.len() as u64 {
        return Err(TRUNCATED);
    }
    Ok((next as usize, children))
}

/// How long an item is that begins with this byte, for those which that alone says. Most values are
/// among them: numbers and short strings.
const SIMPLE: [u8; 256] = {
    let mut sizes = [0; 256];
    let mut marker = 0;
    while marker < sizes.len() {
        sizes[marker] = match marker {
            0x00..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => 1,
            0xa0..=0xbf => 1 + (marker as u8 & 0x1f),
            0xca => 5,
            0xcb => 9,
            0xcc..=0xcf => 1 + (1 << (marker - 0xcc)),
            0xd0..=0xd3 => 1 + (1 << (marker - 0xd0)),
            _ => 0,
        };
        marker += 1;
    }
    sizes
};

/// The length field of `WIDTH` bytes behind the marker at `at`.
fn number<const WIDTH: usize>(bytes: &[u8], at: usize) -> Result<u64, Malformed> {
    let digits = bytes
        .get(at + 1..)
        .and_then(|rest| rest.first_chunk::<WIDTH>())
        .ok_or(TRUNCATED)?;
    Ok(digits
        .iter()
        .fold(0, |sum, digit| sum << 8 | u64::from(*digit)))
}

/// The end of the value at `at`, and how deep it is nested: 0 for a scalar.
fn skip(bytes: &[u8], at: usize, max_depth: usize) -> Result<(usize, usize), Malformed> {
    match item(bytes, at)? {
        (next, 0) => Ok((next, 0)),
        (next, children) => skip_children(bytes, next, children, max_depth),
    }
}

#[inline(never)]
fn skip_children(
    bytes: &[u8],
    mut at: usize,
    mut children: u64,
    max_depth: usize,
) -> Result<(usize, usize), Malformed> {
    let mut open = Vec::new();
    let mut deepest = 0;
    loop {
        if children > 0 {
            open.push(children);
            deepest = deepest.max(open.len());
            if deepest > max_depth {
                return Err(Malformed::TOO_DEEP);
            }
        }
        match open.last_mut() {
            Some(left) if *left > 0 => {
                *left -= 1;
                (at, children) = item(bytes, at)?;
            }
            Some(_) => {
                open.pop();
                children = 0;
            }
            None => return Ok((at, deepest)),
        }
    }
}

pub(super) fn index(bytes: &[u8], limits: &Limits) -> Result<(Option<Head>, Index), Malformed> {
    let (mut at, children) = item(bytes, 0)?;
    let count = children / 2;
    // One more than allowed, for `_meta`.
    if count > limits.keys as u64 + 1 {
        return Err(Malformed::TOO_MANY);
    }
    let mut meta = None;
    // All but `_meta`, which every record of ours has.
    let mut index = Index::with_capacity((count as usize).saturating_sub(1));
    for _ in 0..count {
        let whole = at;
        let (start, end) = match bytes.get(at) {
            Some(marker @ 0xa0..=0xbf) => (at + 1, at + 1 + usize::from(marker & 0x1f)),
            Some(_) | None => string(bytes, at)?,
        };
        let (Some(key), Some(first)) = (bytes.get(start..end), bytes.get(end)) else {
            return Err(TRUNCATED);
        };
        if key.len() == META_KEY.len() && key == META_KEY.as_bytes() {
            let (found, next) = head(bytes, end)?;
            if meta.replace(found).is_some() {
                return Err(Malformed("two _meta entries"));
            }
            at = next;
            continue;
        }
        at = match (SIMPLE[usize::from(*first)], *first) {
            (0, 0xd9) => end + 2 + number::<1>(bytes, end)? as usize,
            (0, _) => {
                let (next, depth) = skip(bytes, end, limits.depth)?;
                index.depth = index.depth.max(depth);
                next
            }
            (size, _) => end + usize::from(size),
        };
        // Not `key.is_ascii()`, which is made for long texts.
        if !key.iter().all(u8::is_ascii) && std::str::from_utf8(key).is_err() {
            return Err(Malformed("a key that is not UTF-8"));
        }
        index.push(whole, Span::new(start, end), Span::new(end, at));
    }
    // Also finds a last value that is cut off.
    if at != bytes.len() {
        return Err(Malformed("cut off, or bytes after the map"));
    }
    Ok((meta, index))
}

/// Where the characters of the string at `at` begin, and where they end unless they are cut off.
#[inline]
fn string(bytes: &[u8], at: usize) -> Result<(usize, usize), Malformed> {
    match bytes.get(at) {
        Some(marker @ 0xa0..=0xbf) => Ok((at + 1, at + 1 + usize::from(marker & 0x1f))),
        Some(0xd9) => Ok((at + 2, item(bytes, at)?.0)),
        Some(0xda) => Ok((at + 3, item(bytes, at)?.0)),
        Some(0xdb) => Ok((at + 5, item(bytes, at)?.0)),
        Some(_) => Err(Malformed("a key that is no string")),
        None => Err(TRUNCATED),
    }
}

/// Reads `_meta`, whose value begins at `at`, and says where it ends. What a later version may add is
/// passed over.
fn head(bytes: &[u8], at: usize) -> Result<(Head, usize), Malformed> {
    const UNREADABLE: Malformed = Malformed("its _meta entry is unreadable");
    if !matches!(bytes.get(at), Some(0x80..=0x8f | 0xde | 0xdf)) {
        return Err(UNREADABLE);
    }
    let (mut at, children) = item(bytes, at)?;
    let mut fields = Fields::default();
    for _ in 0..children / 2 {
        let (start, end) = string(bytes, at)?;
        let simple = bytes
            .get(end)
            .map_or(0, |first| SIMPLE[usize::from(*first)]);
        let next = match simple {
            0 => skip(bytes, end, 1)?.0,
            size => end + usize::from(size),
        };
        at = next;
        let value = bytes.get(end..next).ok_or(TRUNCATED)?;
        let unsigned = || unsigned(value).map(Some).ok_or(UNREADABLE);
        let flag = || match value {
            [0xc2] => Ok(Some(false)),
            [0xc3] => Ok(Some(true)),
            _ => Err(UNREADABLE),
        };
        match bytes.get(start..end).ok_or(TRUNCATED)? {
            b"created" => fields.created = unsigned()?,
            b"generation" => fields.generation = unsigned()?,
            b"lifetime" => fields.lifetime = unsigned()?,
            b"permanent" => fields.permanent = flag()?,
            b"authenticated" => fields.authenticated = unsigned()?,
            b"user" => {
                let (start, _) = string(value, 0).map_err(|_| UNREADABLE)?;
                let text = value
                    .get(start..)
                    .and_then(|text| std::str::from_utf8(text).ok());
                fields.user = Some(Name(text.ok_or(UNREADABLE)?.into()));
            }
            b"ended" => fields.ended = flag()?,
            b"index" => fields.index = flag()?,
            b"successor" => {
                let (start, _) = string(value, 0)?;
                fields.successor = std::str::from_utf8(&value[start..]).ok();
            }
            _ => {}
        }
    }
    Ok((fields.head(), at))
}

fn unsigned(value: &[u8]) -> Option<u64> {
    let digits = match value {
        [small @ 0x00..=0x7f] => return Some(u64::from(*small)),
        [0xcc..=0xcf, digits @ ..] => digits,
        _ => return None,
    };
    let sum = |sum, digit: &u8| sum << 8 | u64::from(*digit);
    Some(digits.iter().fold(0, sum))
}

/// Writes the `kept` entries of `bytes`, whose values are nested at most so `deep`, as they are written
/// already, and the `set` ones: at most `room` in all. Says, too, where they are.
pub(super) fn encode<'a>(
    meta: &Meta,
    bytes: &[u8],
    deep: usize,
    kept: impl Iterator<Item = &'a Entry>,
    set: impl Iterator<Item = (&'a str, &'a [u8])> + Clone,
    room: usize,
) -> (Vec<u8>, Index) {
    let mut index = Index::with_capacity(room);
    // What lies side by side is copied at once.
    let mut runs: Few<Span> = Few::default();
    let mut run: Option<Span> = None;
    for entry in kept {
        let whole = entry.whole();
        match &mut run {
            Some(run) if run.end == whole.start => run.end = whole.end,
            _ => runs.extend(run.replace(whole)),
        }
        index.push_entry(*entry);
    }
    runs.extend(run);
    let count = index.entries.len() + set.clone().count();
    let mut head = [0; MAX_HEAD];
    let mut rest = &mut head[..];
    written(rmp::encode::write_map_len(&mut rest, count as u32 + 1).map(drop));
    encode_meta(&mut rest, &Fields::from(meta));
    let user = meta.user.as_ref().map(|user| &*user.name);
    let length = MAX_HEAD - rest.len();
    let head = head.get(..length).unwrap_or_default();
    // Exact: a buffer with room to spare would cost one more allocation to become `Bytes`, and a
    // store that keeps it would keep the room as well.
    let length = |(key, value): (&str, &[u8])| marker_len(key.len()) + key.len() + value.len();
    let length = head.len()
        + user.map_or(0, user_len)
        + runs.iter().map(|run| run.len()).sum::<usize>()
        + set.clone().map(length).sum::<usize>();
    let mut out = Vec::with_capacity(length);
    out.extend_from_slice(head);
    if let Some(user) = user {
        written(rmp::encode::write_str(&mut out, "user"));
        written(rmp::encode::write_str(&mut out, user));
    }
    let mut at = out.len();
    for entry in &mut index.entries {
        *entry = entry.moved(at);
        at = entry.whole().end as usize;
    }
    index.depth = deep;
    runs.iter()
        .for_each(|run| out.extend_from_slice(run.of(bytes)));
    for (key, value) in set {
        let start = out.len();
        match key.len() {
            short @ 0..=0x1f => out.extend_from_slice(&[0xa0 | short as u8]),
            long => written(rmp::encode::write_str_len(&mut out, long as u32).map(drop)),
        }
        let key_at = out.len();
        out.extend_from_slice(key.as_bytes());
        let value_at = out.len();
        out.extend_from_slice(value);
        let written_at = Span::new(value_at, out.len());
        index.push(start, Span::new(key_at, value_at), written_at);
        // Whatever was accepted as a value is whole.
        let deep = skip(value, 0, usize::MAX).map_or(0, |(_, depth)| depth);
        index.depth = index.depth.max(deep);
    }
    debug_assert_eq!(out.len(), length);
    (out, index)
}

/// What goes before a string of so many bytes.
fn marker_len(string: usize) -> usize {
    match string {
        0..=0x1f => 1,
        0x20..=0xff => 2,
        0x100..=0xffff => 3,
        _ => 5,
    }
}

/// What the user takes in `_meta`, which is written around it.
pub(super) fn user_len(user: &str) -> usize {
    marker_len(4) + 4 + marker_len(user.len()) + user.len()
}

/// The notes on a live session: all but the user, who counts as an entry and comes last.
fn encode_meta(out: &mut impl io::Write, fields: &Fields<'_>) {
    let numbers = [
        ("created", fields.created),
        ("generation", fields.generation),
        ("lifetime", fields.lifetime),
        ("authenticated", fields.authenticated),
    ];
    let count = numbers.iter().filter(|(_, value)| value.is_some()).count()
        + usize::from(fields.permanent.is_some())
        + usize::from(fields.user.is_some());
    written(rmp::encode::write_str(out, META_KEY));
    written(rmp::encode::write_map_len(out, count as u32).map(drop));
    for (name, value) in numbers {
        if let Some(value) = value {
            written(rmp::encode::write_str(out, name));
            written(rmp::encode::write_uint(out, value).map(drop));
        }
    }
    if let Some(permanent) = fields.permanent {
        written(rmp::encode::write_str(out, "permanent"));
        let _ = rmp::encode::write_bool(out, permanent);
    }
}

/// Writing to a `Vec` does not fail, nor does writing `_meta` where there is room for it.
fn written<E: rmp::encode::RmpWriteErr>(result: Result<(), ValueWriteError<E>>) {
    debug_assert!(result.is_ok());
}

pub(super) fn encode_value<T: Serialize + ?Sized>(
    encoded: &mut Buffer,
    value: &T,
) -> Result<(), SessionError> {
    rmp_serde::encode::write_named(encoded, value).map_err(cannot_encode)
}

pub(super) fn shape(value: &[u8], max_depth: usize) -> Shape {
    match skip(value, 0, max_depth) {
        Ok((end, _)) if end == value.len() => Shape::Whole,
        Err(Malformed::TOO_DEEP)
            if skip(value, 0, usize::MAX).is_ok_and(|(end, _)| end == value.len()) =>
        {
            Shape::TooDeep
        }
        Ok(_) | Err(_) => Shape::Broken,
    }
}

/// Whether the value holds a number that JSON has no word for.
pub(super) fn has_non_finite(value: &[u8]) -> bool {
    let mut at = 0;
    while let Ok((next, _)) = item(value, at) {
        let finite = match value.get(at..next) {
            Some([0xca, digits @ ..]) => digits
                .try_into()
                .is_ok_and(|digits| f32::from_be_bytes(digits).is_finite()),
            Some([0xcb, digits @ ..]) => digits
                .try_into()
                .is_ok_and(|digits| f64::from_be_bytes(digits).is_finite()),
            _ => true,
        };
        if !finite {
            return true;
        }
        at = next;
    }
    false
}
