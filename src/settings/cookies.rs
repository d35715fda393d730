//! Whose cookies, and the keys that sign them.

use super::values::Entries;
use crate::error::ConfigError;
#[cfg(feature = "flask")]
use crate::flask::FlaskCookies;
use crate::signing::SigningKeys;

#[derive(Debug, Clone)]
pub(super) enum Cookies {
    Own(SigningKeys),
    #[cfg(feature = "flask")]
    Flask(FlaskCookies),
}

#[cfg(not(feature = "flask"))]
pub(super) fn flask_cookies(_: &mut Entries, _: bool) -> Result<Cookies, ConfigError> {
    Err(ConfigError::new(
        "SESSION_SHARED_WITH_FLASK needs the cargo feature `flask`",
    ))
}

/// The cookies of a Flask application with the same settings.
#[cfg(feature = "flask")]
pub(super) fn flask_cookies(entries: &mut Entries, signer: bool) -> Result<Cookies, ConfigError> {
    for ours in ["SESSION_SECRET", "SESSION_SECRET_FILE"] {
        if entries.has(ours) {
            return Err(ConfigError::new(format!(
                "{ours} is not Flask's: with SESSION_SHARED_WITH_FLASK set SECRET_KEY"
            )));
        }
    }
    let key = entries.text("SECRET_KEY")?;
    let fallbacks = entries.list("SECRET_KEY_FALLBACKS")?.unwrap_or_default();
    if !signer {
        // Flask has a SECRET_KEY for other things, too.
        return Ok(Cookies::Flask(FlaskCookies::plain()));
    }
    let Some(key) = key else {
        return Err(ConfigError::new(
            "SECRET_KEY is to be Flask's, because SESSION_USE_SIGNER is true (it is not set)",
        ));
    };
    let mut cookies = FlaskCookies::signed(key)?;
    for key in fallbacks {
        cookies = cookies.with_fallback(key)?;
    }
    Ok(Cookies::Flask(cookies))
}

pub(super) fn own_cookies(
    entries: &mut Entries,
    signer: Option<bool>,
) -> Result<SigningKeys, ConfigError> {
    if signer == Some(false) {
        return Err(ConfigError::new(
            "SESSION_USE_SIGNER is to be true or left out: cookies are always signed, unless \
             SESSION_SHARED_WITH_FLASK is true",
        ));
    }
    entries.exclude("SECRET_KEY", "SESSION_SECRET")?;
    entries.exclude("SECRET_KEY", "SESSION_SECRET_FILE")?;
    entries.exclude("SESSION_SECRET", "SESSION_SECRET_FILE")?;
    let of =
        |name: &'static str| move |error: ConfigError| ConfigError::new(format!("{name}: {error}"));
    let mut keys = None;
    if let Some(path) = entries.text("SESSION_SECRET_FILE")? {
        keys = Some(
            SigningKeys::load_mounted_or_create(path.as_ref())
                .map_err(of("SESSION_SECRET_FILE"))?,
        );
    }
    if let Some(list) = entries.text("SESSION_SECRET")? {
        keys = Some(SigningKeys::from_list(&list).map_err(of("SESSION_SECRET"))?);
    }
    if let Some(key) = entries.text("SECRET_KEY")? {
        keys = Some(SigningKeys::new(key).map_err(of("SECRET_KEY"))?);
    }
    let Some(mut keys) = keys else {
        return Err(ConfigError::new(
            "there is no signing key: set SECRET_KEY (`openssl rand -base64 48` makes one), \
             SESSION_SECRET or SESSION_SECRET_FILE",
        ));
    };
    for key in entries.list("SECRET_KEY_FALLBACKS")?.unwrap_or_default() {
        keys = keys
            .with_fallback(key)
            .map_err(of("SECRET_KEY_FALLBACKS"))?;
    }
    Ok(keys)
}
