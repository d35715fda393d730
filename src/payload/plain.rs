//! Maps whose values are already encoded: for records that other programs read, too.

#[cfg(feature = "flask")]
use super::Meta;
use super::meta::Fields;
use super::{Format, META_KEY};
use crate::id::SessionKey;

/// A map of `entries`, in their order, behind the layer's notes if there are any.
#[cfg(feature = "flask")]
pub(crate) fn plain_map<'a>(
    format: Format,
    meta: Option<&Meta>,
    entries: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> Vec<u8> {
    map(format, meta.map(Fields::from).as_ref(), entries)
}

/// A map of `entries`, in their order, that is marked as the list of a user's sessions.
pub(crate) fn index_map<'a>(
    format: Format,
    entries: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> Vec<u8> {
    let fields = Fields {
        ended: Some(true),
        index: Some(true),
        ..Fields::default()
    };
    map(format, Some(&fields), entries)
}

/// The payload of a tombstone: nothing but the layer's notes.
pub(crate) fn tombstone(format: Format, successor: Option<&SessionKey>) -> Vec<u8> {
    let fields = Fields {
        ended: Some(true),
        successor: successor.map(SessionKey::as_str),
        ..Fields::default()
    };
    map(format, Some(&fields), std::iter::empty())
}

fn map<'a>(
    format: Format,
    fields: Option<&Fields<'_>>,
    entries: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> Vec<u8> {
    let notes = fields.map(|fields| value(format, fields));
    let mut all: Vec<(&str, &[u8])> = Vec::new();
    all.extend(notes.as_deref().map(|notes| (META_KEY, notes)));
    for entry in entries {
        all.push(entry);
    }
    let mut out = Vec::new();
    match format {
        Format::Json => {
            out.push(b'{');
            for (position, (key, value)) in all.iter().enumerate() {
                if position > 0 {
                    out.push(b',');
                }
                written(serde_json::to_writer(&mut out, key));
                out.push(b':');
                out.extend_from_slice(value);
            }
            out.push(b'}');
        }
        Format::MessagePack => {
            // A payload has fewer bytes than 2^32.
            written(rmp::encode::write_map_len(&mut out, all.len() as u32));
            for (key, value) in &all {
                written(rmp::encode::write_str(&mut out, key));
                out.extend_from_slice(value);
            }
        }
    }
    out
}

fn value(format: Format, fields: &Fields<'_>) -> Vec<u8> {
    let encoded = match format {
        Format::Json => serde_json::to_vec(fields).ok(),
        Format::MessagePack => rmp_serde::to_vec_named(fields).ok(),
    };
    debug_assert!(encoded.is_some(), "notes have a form");
    encoded.unwrap_or_default()
}

/// Writing to a `Vec` does not fail, and strings have a form.
fn written<T, E>(result: Result<T, E>) {
    debug_assert!(result.is_ok());
}
