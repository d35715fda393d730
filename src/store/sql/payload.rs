//! Payloads, out of the rows they came in.

use bytes::Bytes;

use super::{Dialect, PAYLOAD, Row};

/// From here on the row is kept instead of copied. It lies in a buffer of the connection, which
/// would have to be made anew for the sake of a few kilobytes.
const WORTH_KEEPING: usize = 32 * 1024;

/// The payload of a loaded row.
pub(super) fn of<D: Dialect>(row: Row<D>) -> sqlx::Result<Option<Bytes>> {
    let Some(bytes) = D::bytes(&row, PAYLOAD)? else {
        return Ok(None);
    };
    if bytes.len() < WORTH_KEEPING {
        return Ok(Some(Bytes::copy_from_slice(bytes)));
    }
    Ok(Some(Bytes::from_owner(Kept::<D>(row))))
}

struct Kept<D: Dialect>(Row<D>);

impl<D: Dialect> AsRef<[u8]> for Kept<D> {
    fn as_ref(&self) -> &[u8] {
        // It was there a moment ago.
        D::bytes(&self.0, PAYLOAD)
            .ok()
            .flatten()
            .unwrap_or_default()
    }
}
