//! The session id (a secret) and the session key (what stores and logs see).

use std::fmt;
use std::str::FromStr;

use base64_simd::{AsOut, URL_SAFE_NO_PAD};
use rand::Rng;
use sha2::{Digest, Sha256};

use crate::entropy;
use crate::error::{SessionError, SessionErrorKind};

/// 32 bytes from the operating system's generator. Lives in the cookie and nowhere else.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct SessionId([u8; Self::LEN]);

impl SessionId {
    pub(crate) const LEN: usize = 32;

    pub(crate) fn generate() -> Result<Self, SessionError> {
        entropy::draw().map(Self).map_err(|error| {
            SessionError::new(
                SessionErrorKind::Store,
                "the system's random number generator failed",
            )
            .with_source(error)
        })
    }

    pub(crate) fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    pub(crate) fn key(&self) -> SessionKey {
        SessionKey::of_digest(&Sha256::digest(self.0))
    }

    /// The key together with the id, for stores that another program finds by the id.
    #[cfg(feature = "flask")]
    pub(crate) fn key_with_id(self) -> SessionKey {
        SessionKey {
            origin: Origin(Some(self)),
            ..self.key()
        }
    }

    /// The id in base64url, as Flask-Session writes it: a secret like the id itself.
    #[cfg(feature = "flask")]
    pub(crate) fn to_text(self) -> [u8; 43] {
        let mut text = [0; 43];
        let _ = URL_SAFE_NO_PAD.encode(&self.0, text.as_mut_slice().as_out());
        text
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionId(REDACTED)")
    }
}

/// The name under which a store keeps a session: base64url(SHA-256(session id)), 43 characters.
///
/// It is not a credential: nobody can make a cookie from it. It may be logged, listed and put into a
/// URL. Its characters are `A-Z`, `a-z`, `0-9`, `-` and `_`; it is case-sensitive.
///
/// # Examples
///
/// ```
/// use session_layer::SessionKey;
///
/// let key: SessionKey = "LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ".parse()?;
/// assert_eq!(key.as_str().len(), 43);
/// assert!("../../etc/passwd".parse::<SessionKey>().is_err());
/// # Ok::<(), session_layer::ParseKeyError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
// Whole words, which processors copy without waiting for one another's overlap.
#[repr(align(8))]
pub struct SessionKey {
    text: [u8; Self::LEN],
    #[cfg(feature = "flask")]
    origin: Origin,
}

/// The id that a key was made of, where a store needs it. It is in no output, and says nothing about
/// which key it is.
#[cfg(feature = "flask")]
#[derive(Clone, Copy)]
struct Origin(Option<SessionId>);

#[cfg(feature = "flask")]
mod origin {
    use std::cmp::Ordering;
    use std::hash::{Hash, Hasher};

    use super::Origin;

    impl PartialEq for Origin {
        fn eq(&self, _: &Self) -> bool {
            true
        }
    }

    impl Eq for Origin {}

    impl PartialOrd for Origin {
        fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
            Some(self.cmp(other))
        }
    }

    impl Ord for Origin {
        fn cmp(&self, _: &Self) -> Ordering {
            Ordering::Equal
        }
    }

    impl Hash for Origin {
        fn hash<H: Hasher>(&self, _: &mut H) {}
    }
}

impl SessionKey {
    /// The length of every key, in characters.
    pub const LEN: usize = 43;

    /// The key under which a user's sessions are listed. What it is made of is longer than an id, so
    /// that no id has it.
    pub(crate) fn of_user(user: &str) -> Self {
        let digest = Sha256::new()
            .chain_update(b"session-layer: sessions of the user\0")
            .chain_update(user.as_bytes());
        Self::of_digest(&digest.finalize())
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Both constructors admit ASCII only.
        std::str::from_utf8(&self.text).unwrap_or_default()
    }

    /// The id, if the key was made with it.
    #[cfg(feature = "flask")]
    pub(crate) fn id(&self) -> Option<SessionId> {
        self.origin.0
    }

    fn of_digest(digest: &[u8]) -> Self {
        let mut text = [0; Self::LEN];
        // 32 bytes are exactly 43 characters without padding.
        let _ = URL_SAFE_NO_PAD.encode(digest, text.as_mut_slice().as_out());
        Self {
            text,
            #[cfg(feature = "flask")]
            origin: Origin(None),
        }
    }

    pub(crate) fn parse_bytes(text: &[u8]) -> Option<Self> {
        let text: [u8; Self::LEN] = text.try_into().ok()?;
        text.iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            .then_some(Self {
                text,
                #[cfg(feature = "flask")]
                origin: Origin(None),
            })
    }
}

impl FromStr for SessionKey {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        Self::parse_bytes(text.as_bytes()).ok_or(ParseKeyError(()))
    }
}

impl AsRef<str> for SessionKey {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionKey({self})")
    }
}

/// The text is not a session key: it is not 43 characters of the base64url alphabet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseKeyError(());

impl fmt::Display for ParseKeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a session key is 43 characters of A-Z, a-z, 0-9, '-' and '_'")
    }
}

impl std::error::Error for ParseKeyError {}

/// 16 random bytes that name one write of a record.
///
/// The layer draws a new one for each attempt to write, so that a store can tell whether the record
/// it holds is still the one that was read, and the layer can recognise a write of its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Revision([u8; Self::LEN]);

impl Revision {
    /// The length of a revision, in bytes.
    pub const LEN: usize = 16;

    /// The revision that a store has kept as `bytes`.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The bytes to keep and to compare.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// A new random revision, from a generator that the operating system seeded.
    #[must_use]
    pub fn generate() -> Self {
        let mut bytes = [0; Self::LEN];
        rand::rng().fill_bytes(&mut bytes);
        Self(bytes)
    }
}

impl fmt::Debug for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Revision({:032x})", u128::from_be_bytes(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_hash_of_the_id_and_never_the_id() {
        let id = SessionId::from_bytes([0; 32]);
        // printf '\0%.0s' {1..32} | sha256sum, as base64url
        assert_eq!(
            id.key().as_str(),
            "Zmh6rfhivXdsj8GLjp-OIAiXFIVu4jOzkCpZHQ1fKSU"
        );
    }

    #[test]
    fn no_id_has_the_key_of_a_users_list() {
        // printf 'session-layer: sessions of the user\0ada' | sha256sum, as base64url
        assert_eq!(
            SessionKey::of_user("ada").as_str(),
            "cxB_b2lTpJAc8F6SOVuQGykQocCydE1vngaDDN2ESLY"
        );
        assert!(b"session-layer: sessions of the user\0".len() > SessionId::LEN);
    }

    #[test]
    fn ids_do_not_repeat_and_do_not_print() {
        let (a, b) = (
            SessionId::generate().unwrap(),
            SessionId::generate().unwrap(),
        );
        assert!(a != b);
        assert_eq!(format!("{a:?}"), "SessionId(REDACTED)");
    }

    #[test]
    fn keys_have_one_grammar() {
        for bad in [
            "",
            "a",
            "../../../../etc/passwd",
            &"a".repeat(44),
            &"é".repeat(21),
            &"a ".repeat(21),
        ] {
            assert!(bad.parse::<SessionKey>().is_err(), "{bad:?}");
        }
        let with_nul = "a".repeat(42) + "\0";
        assert!(with_nul.parse::<SessionKey>().is_err());
        assert!("a".repeat(43).parse::<SessionKey>().is_ok());
    }
}
