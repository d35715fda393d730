//! Signing: which cookie values this application has issued.

use std::env;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use base64_simd::{AsOut, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use rand::TryRng;
use rand::rngs::SysRng;
use sha2::Sha256;

use crate::error::ConfigError;
#[cfg(feature = "flask")]
use crate::flask::FlaskCookies;
use crate::id::{SessionId, SessionKey};

type HmacSha256 = Hmac<Sha256>;

const MAC_LEN: usize = 32;
const ISSUED_LEN: usize = 8;
const SEALED_LEN: usize = SessionId::LEN + ISSUED_LEN + MAC_LEN;
/// The version of the cookie's form: its first character, and the first byte under the MAC.
const VERSION: u8 = b'1';
/// The length of every cookie value: the version and 72 bytes in base64url.
pub(crate) const VALUE_LEN: usize = 1 + SEALED_LEN / 3 * 4;

/// The keys that sign session cookies: the first signs, all verify.
///
/// To change keys without logging anyone out, put the new key first and keep the old one as a
/// fallback for as long as sessions live; cookies signed by a fallback are re-issued when they are
/// seen. Removing a key rejects what it signed.
///
/// A key is at least 32 bytes of randomness, of any form: `openssl rand -base64 48` makes one.
/// `Debug` prints how many keys there are, nothing else.
///
/// # Examples
///
/// ```
/// use session_layer::SigningKeys;
///
/// let keys = SigningKeys::new("the new key, made by a password generator")?
///     .with_fallback("the old key, which signed what browsers still hold")?;
/// assert!(SigningKeys::new("too short").is_err());
/// # Ok::<(), session_layer::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct SigningKeys {
    ring: Vec<Box<[u8]>>,
}

impl SigningKeys {
    /// The least length of a key, in bytes.
    pub const MIN_KEY_LEN: usize = 32;

    /// A ring of one key.
    ///
    /// # Errors
    ///
    /// When the key has fewer than 32 bytes.
    pub fn new(key: impl AsRef<[u8]>) -> Result<Self, ConfigError> {
        Self { ring: Vec::new() }.with_fallback(key)
    }

    /// Adds an older key, which verifies but no longer signs.
    ///
    /// # Errors
    ///
    /// When the key has fewer than 32 bytes.
    pub fn with_fallback(mut self, key: impl AsRef<[u8]>) -> Result<Self, ConfigError> {
        let key = key.as_ref();
        if key.len() < Self::MIN_KEY_LEN {
            return Err(ConfigError::new(format!(
                "signing key {} has {} bytes; at least {} random bytes are needed, for example from \
                 `openssl rand -base64 48`",
                self.ring.len() + 1,
                key.len(),
                Self::MIN_KEY_LEN,
            )));
        }
        self.ring.push(key.into());
        Ok(self)
    }

    /// Reads the keys from an environment variable: one, or several separated by commas, the newest
    /// first.
    ///
    /// # Errors
    ///
    /// When the variable is not set, is not UTF-8, or holds a key of fewer than 32 bytes. The text says
    /// how to make one.
    pub fn from_env(variable: &str) -> Result<Self, ConfigError> {
        let text = env::var(variable).map_err(|error| {
            // The error's own text would print the value.
            let reason = match error {
                env::VarError::NotPresent => {
                    "it is not set; it is to be at least 32 random bytes, as `openssl rand -base64 48` \
                     makes them"
                }
                env::VarError::NotUnicode(_) => {
                    "it is not UTF-8; `openssl rand -base64 48` makes a key that is"
                }
            };
            ConfigError::new(format!("environment variable {variable}: {reason}"))
        })?;
        Self::from_list(&text)
            .map_err(|error| ConfigError::new(format!("environment variable {variable}: {error}")))
    }

    /// Keys separated by commas, the newest first.
    pub(crate) fn from_list(text: &str) -> Result<Self, ConfigError> {
        let empty = Self { ring: Vec::new() };
        text.split(',')
            .try_fold(empty, |keys, key| keys.with_fallback(key.trim()))
    }

    /// A ring of one new random key, which is gone when the program ends, and every session's cookie
    /// with it: for tests and for trying things out.
    ///
    /// # Errors
    ///
    /// When the operating system's random number generator fails.
    pub fn generate() -> Result<Self, ConfigError> {
        let mut key = [0; 48];
        SysRng.try_fill_bytes(&mut key).map_err(|error| {
            ConfigError::new(format!(
                "the system's random number generator failed: {error}"
            ))
        })?;
        Self::new(URL_SAFE_NO_PAD.encode_to_string(key))
    }

    /// Reads the keys from a file, one a line, the newest first; makes the file with a new random key
    /// if there is none. On Unix the new file is readable by its owner only, and one that others can
    /// read or write is refused: with the key, anybody can sign a cookie.
    ///
    /// For development and for programs on one machine. Programs that start at the same time agree
    /// on one key. Keys that come in a file of another mode (a mounted secret, say) are read by the
    /// application and given to [`new`](Self::new).
    ///
    /// # Errors
    ///
    /// When the file cannot be read or made, when it is open to others, or when it holds a key of fewer
    /// than 32 bytes, or none.
    pub fn load_or_create(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let failed =
            |error: io::Error| ConfigError::new(format!("key file {}: {error}", path.display()));
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create_key_file(path).map_err(failed)?;
                File::open(path)
            }
            opened => opened,
        }
        .map_err(failed)?;
        // Of the file that was opened: the path may name another one by now.
        if is_open_to_others(&file.metadata().map_err(failed)?) {
            let path = path.display();
            return Err(ConfigError::new(format!(
                "key file {path} is open to other users: chmod 600 {path}"
            )));
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        let mut keys = Self { ring: Vec::new() };
        for key in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            keys = keys.with_fallback(key).map_err(|error| {
                ConfigError::new(format!("key file {}: {error}", path.display()))
            })?;
        }
        if keys.ring.is_empty() {
            return Err(ConfigError::new(format!(
                "key file {} is empty; delete it to have a new key made",
                path.display()
            )));
        }
        Ok(keys)
    }
}

#[cfg(unix)]
fn is_open_to_others(meta: &fs::Metadata) -> bool {
    // Reading a directory fails by itself, for the better reason.
    !meta.is_dir() && std::os::unix::fs::MetadataExt::mode(meta) & 0o077 != 0
}

#[cfg(not(unix))]
fn is_open_to_others(_: &fs::Metadata) -> bool {
    false
}

/// Puts a new key at `path` in one step, unless something is there by then.
fn create_key_file(path: &Path) -> io::Result<()> {
    let mut random = [0; 56];
    SysRng
        .try_fill_bytes(&mut random)
        .map_err(io::Error::other)?;
    let (key, name) = random.split_at(48);
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", URL_SAFE_NO_PAD.encode_to_string(name)));
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&temporary)?;
    let placed = writeln!(file, "{}", URL_SAFE_NO_PAD.encode_to_string(key))
        .and_then(|()| file.sync_all())
        .and_then(|()| match fs::hard_link(&temporary, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        });
    fs::remove_file(&temporary)?;
    placed
}

impl fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKeys({} REDACTED)", self.ring.len())
    }
}

/// A key ring bound to one cookie name.
#[derive(Clone)]
pub(crate) struct Signer {
    /// Each has already seen the version and the name.
    ring: Vec<HmacSha256>,
    #[cfg(feature = "flask")]
    flask: Flask,
}

/// What Flask-Session's cookies are to this layer.
#[cfg(feature = "flask")]
#[derive(Clone)]
enum Flask {
    /// Nothing.
    Unknown,
    /// Accepted, and issued again in our own form.
    Accepted(FlaskCookies),
    /// The only form.
    Spoken(FlaskCookies),
}

/// What a verified cookie says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verified {
    pub(crate) id: SessionId,
    /// When the cookie was issued, in milliseconds since 1970, if it says so.
    pub(crate) issued: Option<u64>,
    /// Whether a fallback key signed it.
    pub(crate) old_key: bool,
}

/// Why a cookie value is not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejected {
    Malformed,
    Signature,
}

impl Signer {
    pub(crate) fn new(keys: &SigningKeys, cookie_name: &str) -> Self {
        let bind = |key: &[u8]| {
            // HMAC takes a key of any length; this arm is never reached.
            let mut mac = HmacSha256::new_from_slice(key).ok()?;
            mac.update(&[VERSION]);
            mac.update(&(cookie_name.len() as u64).to_be_bytes()[6..]);
            mac.update(cookie_name.as_bytes());
            Some(mac)
        };
        Self {
            ring: keys.ring.iter().filter_map(|key| bind(key)).collect(),
            #[cfg(feature = "flask")]
            flask: Flask::Unknown,
        }
    }

    /// Reads and writes Flask-Session's cookies only.
    #[cfg(feature = "flask")]
    pub(crate) fn of_flask(cookies: FlaskCookies) -> Self {
        Self {
            ring: Vec::new(),
            flask: Flask::Spoken(cookies),
        }
    }

    /// Reads Flask-Session's cookies beside our own.
    #[cfg(feature = "flask")]
    pub(crate) fn accept_flask(&mut self, cookies: FlaskCookies) {
        if let Flask::Unknown | Flask::Accepted(_) = self.flask {
            self.flask = Flask::Accepted(cookies);
        }
    }

    /// The key under which the store has the session of this id.
    pub(crate) fn key(&self, id: &SessionId) -> SessionKey {
        #[cfg(feature = "flask")]
        if !matches!(self.flask, Flask::Unknown) {
            return id.key_with_id();
        }
        id.key()
    }

    /// Whether sessions are shared with Flask, whose records have no place for what is ours.
    pub(crate) fn is_of_flask(&self) -> bool {
        #[cfg(feature = "flask")]
        if matches!(self.flask, Flask::Spoken(_)) {
            return true;
        }
        false
    }

    /// The cookie value for `id` where Flask is to read it.
    #[cfg(feature = "flask")]
    pub(crate) fn sign_for_flask(&self, id: &SessionId) -> Option<Vec<u8>> {
        match &self.flask {
            Flask::Spoken(cookies) => Some(cookies.value(id)),
            Flask::Unknown | Flask::Accepted(_) => None,
        }
    }

    /// The cookie value for `id`; `None` only for an empty ring, which cannot be made.
    pub(crate) fn sign(&self, id: &SessionId, issued: u64) -> Option<[u8; VALUE_LEN]> {
        let mut sealed = [0; SEALED_LEN];
        let (message, mac_at) = sealed.split_at_mut(SessionId::LEN + ISSUED_LEN);
        let (id_at, issued_at) = message.split_at_mut(SessionId::LEN);
        id_at.copy_from_slice(id.as_bytes());
        issued_at.copy_from_slice(&issued.to_be_bytes());
        let mut mac = self.ring.first()?.clone();
        mac.update(message);
        mac_at.copy_from_slice(&mac.finalize().into_bytes());
        let mut value = [VERSION; VALUE_LEN];
        let _ = URL_SAFE_NO_PAD.encode(&sealed, value[1..].as_out());
        Some(value)
    }

    pub(crate) fn verify(&self, value: &[u8]) -> Result<Verified, Rejected> {
        #[cfg(feature = "flask")]
        match &self.flask {
            Flask::Spoken(cookies) => return cookies.verify(value),
            // The forms differ in their lengths.
            Flask::Accepted(cookies) if value.len() != VALUE_LEN => {
                let verified = cookies.verify(value)?;
                return Ok(Verified {
                    old_key: true,
                    ..verified
                });
            }
            Flask::Accepted(_) | Flask::Unknown => {}
        }
        let Some((&VERSION, text)) = value.split_first() else {
            return Err(Rejected::Malformed);
        };
        let mut sealed = [0; SEALED_LEN];
        if text.len() != VALUE_LEN - 1
            || URL_SAFE_NO_PAD
                .decode(text, sealed.as_mut_slice().as_out())
                .is_err()
        {
            return Err(Rejected::Malformed);
        }
        let (message, mac_found) = sealed.split_at(SessionId::LEN + ISSUED_LEN);
        for (position, mac) in self.ring.iter().enumerate() {
            let mut mac = mac.clone();
            mac.update(message);
            if mac.verify_slice(mac_found).is_ok() {
                let (id, issued) = message.split_at(SessionId::LEN);
                let (Ok(id), Ok(issued)) = (id.try_into(), issued.try_into()) else {
                    return Err(Rejected::Malformed);
                };
                return Ok(Verified {
                    id: SessionId::from_bytes(id),
                    issued: Some(u64::from_be_bytes(issued)),
                    old_key: position > 0,
                });
            }
        }
        Err(Rejected::Signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "old-old-old-old-old-old-old-old-old";
    const NEW: &str = "new-new-new-new-new-new-new-new-new";

    fn signer(key: &str, name: &str) -> Signer {
        Signer::new(&SigningKeys::new(key).unwrap(), name)
    }

    #[test]
    fn a_signed_value_verifies_for_its_own_cookie_only() {
        let id = SessionId::generate().unwrap();
        let value = signer(NEW, "sid").sign(&id, 7).unwrap();
        let verified = signer(NEW, "sid").verify(&value);
        assert_eq!(
            verified,
            Ok(Verified {
                id,
                issued: Some(7),
                old_key: false
            })
        );
        assert_eq!(
            signer(NEW, "theme").verify(&value),
            Err(Rejected::Signature)
        );
        // Nor for one whose name is as long.
        assert_eq!(signer(NEW, "uid").verify(&value), Err(Rejected::Signature));
        assert_eq!(signer(OLD, "sid").verify(&value), Err(Rejected::Signature));
    }

    #[test]
    fn every_changed_character_is_noticed() {
        let signer = signer(NEW, "sid");
        let value = signer
            .sign(&SessionId::generate().unwrap(), 1_700_000_000_000)
            .unwrap();
        for at in 0..value.len() {
            for other in b"Aa0_-.=1 \0\xff" {
                let mut changed = value;
                changed[at] = *other;
                assert_eq!(
                    signer.verify(&changed).is_ok(),
                    changed == value,
                    "{at} {other}"
                );
            }
        }
        for length in 0..value.len() {
            assert_eq!(signer.verify(&value[..length]), Err(Rejected::Malformed));
        }
        assert!(signer.verify(&[&value[..], b"A"].concat()).is_err());
    }

    #[test]
    fn a_fallback_verifies_until_it_is_removed() {
        let value = signer(OLD, "sid")
            .sign(&SessionId::generate().unwrap(), 0)
            .unwrap();
        let ring = SigningKeys::new(NEW).unwrap().with_fallback(OLD).unwrap();
        let verified = Signer::new(&ring, "sid").verify(&value).unwrap();
        assert!(verified.old_key);
        let again = Signer::new(&ring, "sid").sign(&verified.id, 0).unwrap();
        assert!(signer(NEW, "sid").verify(&again).is_ok());
        assert!(signer(NEW, "sid").verify(&value).is_err());
    }

    #[test]
    fn short_keys_are_refused_and_keys_do_not_print() {
        assert!(SigningKeys::new([0; 31]).is_err());
        assert!(SigningKeys::new(NEW).unwrap().with_fallback("").is_err());
        let ring = SigningKeys::new(NEW).unwrap();
        assert_eq!(format!("{ring:?}"), "SigningKeys(1 REDACTED)");
        let error = SigningKeys::new("hunter2hunter2").unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn who_has_no_key_or_a_short_one_is_told_how_to_make_one() {
        let absent = SigningKeys::from_env("SESSION_LAYER_TEST_NO_KEY").unwrap_err();
        let list = SigningKeys::from_list(&format!("{NEW},short")).unwrap_err();
        let short = SigningKeys::new("short").unwrap_err();
        for (error, says) in [
            (
                absent,
                "environment variable SESSION_LAYER_TEST_NO_KEY: it is not set",
            ),
            (list, "signing key 2 has 5 bytes"),
            (short, "signing key 1 has 5 bytes"),
        ] {
            // What `main` prints of it.
            let text = format!("{error:?}");
            assert!(text.starts_with(says), "{text}");
            assert!(text.contains("at least 32 random bytes"), "{text}");
            assert!(text.contains("`openssl rand -base64 48`"), "{text}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_key_that_is_no_text_is_not_printed() {
        use std::os::unix::ffi::OsStrExt;
        const VARIABLE: &str = "SESSION_LAYER_TEST_KEY";
        const NAME: &str = "signing::tests::a_key_that_is_no_text_is_not_printed";
        if env::var_os(VARIABLE).is_some() {
            println!("refused: {}", SigningKeys::from_env(VARIABLE).unwrap_err());
            return;
        }
        // A test cannot change its own environment safely.
        let child = std::process::Command::new(env::current_exe().unwrap())
            .args([NAME, "--exact", "--nocapture"])
            .env(VARIABLE, std::ffi::OsStr::from_bytes(b"hunter2\xff"))
            .output()
            .unwrap();
        let out = String::from_utf8_lossy(&child.stdout);
        assert!(out.contains("refused: environment variable"), "{out}");
        assert!(!out.contains("hunter2"), "{out}");
    }

    #[test]
    fn a_key_file_is_made_once_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let signers: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| Signer::new(&SigningKeys::load_or_create(&path).unwrap(), "sid"))
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        let value = signers[0].sign(&SessionId::generate().unwrap(), 0).unwrap();
        assert!(signers.iter().all(|signer| signer.verify(&value).is_ok()));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(
                fs::metadata(&path).unwrap().permissions().mode() & 0o777,
                0o600
            );
        }
        let refused = |text: &str| {
            fs::write(&path, text).unwrap();
            SigningKeys::load_or_create(&path).unwrap_err().to_string()
        };
        let short = refused("short\n");
        assert!(short.contains("has 5 bytes"), "{short}");
        let empty = refused("\n");
        assert!(empty.contains("is empty"), "{empty}");
    }

    #[cfg(unix)]
    #[test]
    fn a_key_file_that_others_can_read_or_write_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        SigningKeys::load_or_create(&path).unwrap();
        let load_with = |mode| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            SigningKeys::load_or_create(&path)
        };
        for mode in [0o640, 0o604, 0o620, 0o602, 0o644, 0o666] {
            let error = load_with(mode).unwrap_err().to_string();
            let path = path.display();
            let says = format!("key file {path} is open to other users: chmod 600 {path}");
            assert_eq!(error, says, "{mode:o}");
        }
        for mode in [0o600, 0o400, 0o700] {
            assert!(load_with(mode).is_ok(), "{mode:o}");
        }
        let folder = SigningKeys::load_or_create(folder.path()).unwrap_err();
        assert!(!folder.to_string().contains("chmod"), "{folder}");
    }
}
