//! Flask-Session's cookie: the session id, plain or signed as `itsdangerous` does.

use std::fmt;

use base64_simd::{AsOut, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;

use crate::error::ConfigError;
use crate::id::SessionId;
use crate::signing::{Rejected, Verified};

type HmacSha1 = Hmac<Sha1>;

const SALT: &[u8] = b"flask-session";
const MAC_LEN: usize = 20;
/// 32 bytes and 20 bytes in base64url.
const ID_TEXT: usize = 43;
const MAC_TEXT: usize = 27;

/// How Flask-Session's cookies look: [plain](Self::plain), as with `SESSION_USE_SIGNER = False` (its
/// default), or [signed](Self::signed).
///
/// The value of its cookie is the session id, `secrets.token_urlsafe(32)`: 32 random bytes, which is
/// what an id is here, too. Ids of another `SESSION_ID_LENGTH` are not accepted. The signature does not
/// cover the cookie's name and has no time in it; it is HMAC-SHA1 with a key derived from `SECRET_KEY`.
///
/// `Debug` prints how many keys there are, nothing else.
///
/// # Examples
///
/// ```
/// use session_layer::FlaskCookies;
///
/// let cookies = FlaskCookies::signed("Flask's SECRET_KEY")?;
/// # Ok::<(), session_layer::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct FlaskCookies {
    /// Each derived already; none for plain cookies.
    ring: Vec<HmacSha1>,
}

impl FlaskCookies {
    /// The id alone. Nothing keeps made-up ids from the store; they are looked up, not found, and never
    /// adopted.
    #[must_use]
    pub const fn plain() -> Self {
        Self { ring: Vec::new() }
    }

    /// The id, signed with Flask's `SECRET_KEY`. Plain ones are not accepted.
    ///
    /// # Errors
    ///
    /// When the key is empty. A short one is accepted, because it is Flask's: it is the id that nobody
    /// can guess.
    pub fn signed(secret_key: impl AsRef<[u8]>) -> Result<Self, ConfigError> {
        Self::plain().with_key(secret_key.as_ref())
    }

    /// Adds an older key, which verifies but no longer signs. Flask-Session itself ignores
    /// `SECRET_KEY_FALLBACKS`: what it does not accept any more, this side still does.
    ///
    /// # Errors
    ///
    /// When the key is empty, or the cookies are plain.
    pub fn with_fallback(self, secret_key: impl AsRef<[u8]>) -> Result<Self, ConfigError> {
        if self.ring.is_empty() {
            return Err(ConfigError::new("plain cookies have no keys"));
        }
        self.with_key(secret_key.as_ref())
    }

    fn with_key(mut self, key: &[u8]) -> Result<Self, ConfigError> {
        if key.is_empty() {
            return Err(ConfigError::new("Flask's SECRET_KEY is empty"));
        }
        // HMAC takes a key of any length; these arms are never reached.
        let keyed = |key: &[u8]| {
            HmacSha1::new_from_slice(key).map_err(|_| ConfigError::new("HMAC refused the key"))
        };
        let mut derive = keyed(key)?;
        derive.update(SALT);
        self.ring.push(keyed(&derive.finalize().into_bytes())?);
        Ok(self)
    }

    pub(crate) fn verify(&self, value: &[u8]) -> Result<Verified, Rejected> {
        let verified = |id, old_key| Verified {
            id,
            issued: None,
            old_key,
        };
        if self.ring.is_empty() {
            return parse(value)
                .map(|id| verified(id, false))
                .ok_or(Rejected::Malformed);
        }
        // The id has no dot in it, so this is the last one.
        let (sid, rest) = value.split_at_checked(ID_TEXT).ok_or(Rejected::Malformed)?;
        let Some((b'.', signature)) = rest.split_first() else {
            return Err(Rejected::Malformed);
        };
        let mut found = [0; MAC_LEN];
        if signature.len() != MAC_TEXT
            || URL_SAFE_NO_PAD
                .decode(signature, found.as_mut_slice().as_out())
                .is_err()
        {
            return Err(Rejected::Malformed);
        }
        let id = parse(sid).ok_or(Rejected::Malformed)?;
        for (position, mac) in self.ring.iter().enumerate() {
            let mut mac = mac.clone();
            mac.update(sid);
            if mac.verify_slice(&found).is_ok() {
                return Ok(verified(id, position > 0));
            }
        }
        Err(Rejected::Signature)
    }

    pub(crate) fn value(&self, id: &SessionId) -> Vec<u8> {
        let mut value = Vec::with_capacity(ID_TEXT + 1 + MAC_TEXT);
        value.extend_from_slice(&id.to_text());
        if let Some(mac) = self.ring.first() {
            let mut mac = mac.clone();
            mac.update(&value);
            let mac = mac.finalize().into_bytes();
            value.push(b'.');
            value.extend_from_slice(URL_SAFE_NO_PAD.encode_to_string(mac).as_bytes());
        }
        value
    }
}

/// The id that Flask writes as `text`; only the form that Flask writes counts.
pub(crate) fn parse(text: &[u8]) -> Option<SessionId> {
    let mut bytes = [0; SessionId::LEN];
    if text.len() != ID_TEXT {
        return None;
    }
    URL_SAFE_NO_PAD
        .decode(text, bytes.as_mut_slice().as_out())
        .ok()?;
    Some(SessionId::from_bytes(bytes))
}

impl fmt::Debug for FlaskCookies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ring.len() {
            0 => f.write_str("FlaskCookies(plain)"),
            keys => write!(f, "FlaskCookies({keys} REDACTED)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // What Flask-Session 0.8.0 has set as a cookie under this key.
    const KEY: &str = "fixture-secret-key-0123456789";
    const SID: &str = "q3Zr0vXkT8m1cB7yJ4uNwE5sHfL2aPdG9iKoR6tVxYU";
    const COOKIE: &str = "q3Zr0vXkT8m1cB7yJ4uNwE5sHfL2aPdG9iKoR6tVxYU.kUyppq8qS2gOhbrWqQl191Qcycw";

    #[test]
    fn a_signature_is_that_of_flask_session() {
        let cookies = FlaskCookies::signed(KEY).unwrap();
        let verified = cookies.verify(COOKIE.as_bytes()).unwrap();
        assert!(!verified.old_key);
        assert_eq!(cookies.value(&verified.id), COOKIE.as_bytes());
        assert_eq!(FlaskCookies::plain().value(&verified.id), SID.as_bytes());
        let id = FlaskCookies::plain().verify(SID.as_bytes()).unwrap().id;
        assert!(id == verified.id);
    }

    #[test]
    fn each_form_is_accepted_only_where_it_is_meant() {
        let signed = FlaskCookies::signed(KEY).unwrap();
        assert_eq!(signed.verify(SID.as_bytes()), Err(Rejected::Malformed));
        let plain = FlaskCookies::plain();
        assert_eq!(plain.verify(COOKIE.as_bytes()), Err(Rejected::Malformed));
        let other = FlaskCookies::signed("another key").unwrap();
        assert_eq!(other.verify(COOKIE.as_bytes()), Err(Rejected::Signature));
        let ring = other.with_fallback(KEY).unwrap();
        assert!(ring.verify(COOKIE.as_bytes()).unwrap().old_key);
        assert!(plain.with_fallback(KEY).is_err());
        assert!(FlaskCookies::signed("").is_err());
    }

    #[test]
    fn every_changed_character_is_noticed() {
        let signed = FlaskCookies::signed(KEY).unwrap();
        for at in 0..COOKIE.len() {
            for other in b"Aa0_-.=1 \0\xff" {
                let mut changed = COOKIE.as_bytes().to_vec();
                changed[at] = *other;
                let same = changed == COOKIE.as_bytes();
                assert_eq!(signed.verify(&changed).is_ok(), same, "{at} {other}");
            }
        }
        for length in 0..COOKIE.len() {
            assert!(signed.verify(&COOKIE.as_bytes()[..length]).is_err());
        }
        let longer = [COOKIE.as_bytes(), b"A"].concat();
        assert!(signed.verify(&longer).is_err());
    }

    #[test]
    fn an_id_has_one_form_and_one_length() {
        let plain = FlaskCookies::plain();
        // The last character has two bits too many: of four that decode alike, Flask writes one.
        let last = SID.as_bytes()[42];
        let accepted: Vec<u8> = (b'!'..=b'~')
            .filter(|other| {
                let mut text = SID.as_bytes().to_vec();
                text[42] = *other;
                plain.verify(&text).is_ok() && plain.verify(&text).unwrap().id.to_text()[42] == last
            })
            .collect();
        assert_eq!(accepted, [last]);
        for bad in [
            "",
            "a",
            "../../../../../../../../etc/passwd/aaaaaaaaa",
            "2f6dd8d1-2a4c-4c3c-9d0e-0f6b7a5c1e11",
            "q3Zr0vXkT8m1cB7yJ4uNwE5sHfL2aPdG9iKoR6tVxY ",
            &"a".repeat(44),
            &"a".repeat(5000),
            &"é".repeat(22),
        ] {
            assert_eq!(
                plain.verify(bad.as_bytes()),
                Err(Rejected::Malformed),
                "{bad}"
            );
        }
    }

    #[test]
    fn keys_do_not_print() {
        assert_eq!(
            format!("{:?}", FlaskCookies::signed(KEY).unwrap()),
            "FlaskCookies(1 REDACTED)"
        );
        assert_eq!(
            format!("{:?}", FlaskCookies::plain()),
            "FlaskCookies(plain)"
        );
    }
}
