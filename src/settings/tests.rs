use std::collections::BTreeMap;

use super::names::SETTINGS;
use super::*;
use crate::config::{SameSite, ServerErrors};
use crate::payload::Format;

const KEY: &str = "hunter2-hunter2-hunter2-hunter2-hunter2";
const BASE: [(&str, &str); 2] = [("SECRET_KEY", KEY), ("SESSION_STORE", "memory://")];

fn with(pairs: &[(&str, &str)]) -> Result<SessionSettings, ConfigError> {
    SessionSettings::from_pairs(BASE.iter().chain(pairs).copied())
}

fn refused(pairs: &[(&str, &str)]) -> String {
    let error = with(pairs).expect_err("it is refused").to_string();
    assert!(!error.contains("hunter2"), "{error}");
    error
}

fn file(text: &str) -> Result<SessionSettings, String> {
    serde_json::from_str(text).map_err(|error: serde_json::Error| error.to_string())
}

#[test]
fn each_setting_means_what_it_means_in_flask() {
    let config = SessionConfig::default;
    let seconds = Duration::from_secs;
    for (name, value, expected) in [
        (
            "SESSION_COOKIE_NAME",
            "sid",
            config().with_cookie_name("sid"),
        ),
        (
            "SESSION_COOKIE_PATH",
            "/app",
            config().with_cookie_path("/app").with_cookie_name("sid"),
        ),
        (
            "SESSION_COOKIE_DOMAIN",
            "example.com",
            config()
                .with_cookie_domain("example.com".to_owned())
                .with_cookie_name("sid"),
        ),
        (
            "SESSION_COOKIE_HTTPONLY",
            "False",
            config().with_http_only(false),
        ),
        (
            "SESSION_COOKIE_SECURE",
            "false",
            config().with_insecure_plain_http_for_development(true),
        ),
        ("SESSION_COOKIE_SECURE", "1", config()),
        (
            "SESSION_COOKIE_SAMESITE",
            "strict",
            config().with_same_site(SameSite::Strict),
        ),
        (
            "SESSION_COOKIE_SAMESITE",
            "None",
            config().with_same_site(SameSite::None),
        ),
        (
            "SESSION_COOKIE_PARTITIONED",
            "yes",
            config().with_partitioned(true),
        ),
        ("SESSION_PERMANENT", "off", config().with_permanent(false)),
        (
            "PERMANENT_SESSION_LIFETIME",
            "90",
            config().with_idle_timeout(seconds(90)),
        ),
        (
            "PERMANENT_SESSION_LIFETIME",
            "1h 30m",
            config().with_idle_timeout(seconds(5400)),
        ),
        (
            "SESSION_IDLE_TIMEOUT",
            "0.5",
            config().with_idle_timeout(seconds(1) / 2),
        ),
        (
            "SESSION_REFRESH_EACH_REQUEST",
            "true",
            config().with_refresh_share(0.0),
        ),
        (
            "SESSION_REFRESH_EACH_REQUEST",
            "false",
            config().with_refresh_share(1.0),
        ),
        (
            "SESSION_REFRESH_SHARE",
            "0.25",
            config().with_refresh_share(0.25),
        ),
        (
            "SESSION_SERIALIZATION_FORMAT",
            "JSON",
            config().with_format(Format::Json),
        ),
        ("SESSION_SERIALIZATION_FORMAT", "msgpack", config()),
        ("SESSION_USE_SIGNER", "True", config()),
        ("SESSION_ID_LENGTH", "32", config()),
        ("SESSION_MAX_PAYLOAD", "99", config().with_max_payload(99)),
        ("SESSION_MAX_KEYS", "9", config().with_max_keys(9)),
        ("SESSION_MAX_DEPTH", "3", config().with_max_depth(3)),
        (
            "SESSION_SERVER_ERRORS",
            "commit",
            config().with_server_errors(ServerErrors::Commit),
        ),
        (
            "SESSION_STORE_TIMEOUT",
            "500ms",
            config().with_store_timeout(seconds(1) / 2),
        ),
        (
            "SESSION_COMMIT_TIMEOUT",
            "3",
            config().with_commit_timeout(seconds(3)),
        ),
        (
            "SESSION_MAX_PER_USER",
            "3",
            config().with_sessions_per_user(3),
        ),
    ] {
        let mut pairs = vec![(name, value)];
        if ["SESSION_COOKIE_PATH", "SESSION_COOKIE_DOMAIN"].contains(&name) {
            pairs.push(("SESSION_COOKIE_NAME", "sid"));
        }
        let settings = with(&pairs).unwrap_or_else(|error| panic!("{name}={value}: {error}"));
        assert_eq!(settings.config, expected, "{name}={value}");
    }
    let absolute = with(&[
        ("SESSION_IDLE_TIMEOUT", "60"),
        ("SESSION_ABSOLUTE_TIMEOUT", "12h"),
    ]);
    let expected = config()
        .with_idle_timeout(seconds(60))
        .with_absolute_timeout(Some(seconds(43200)));
    assert_eq!(absolute.unwrap().config, expected);
}

#[test]
fn what_cannot_be_is_refused_by_name_and_without_its_value() {
    for (pairs, says) in [
        (
            &[("SESSION_COOKIE_SECURE", "hunter2")][..],
            "SESSION_COOKIE_SECURE is to be true or false",
        ),
        (
            &[("SESSION_COOKIE_SAMESITE", "hunter2")],
            "SESSION_COOKIE_SAMESITE is to be Lax, Strict or None",
        ),
        (
            &[("SESSION_COOKIE_NAME", "")],
            "SESSION_COOKIE_NAME is empty",
        ),
        (&[("SESSION_COOKIE_NAME", "a b")], "SESSION_COOKIE_NAME"),
        (&[("SESSION_COOKIE_PATH", "app")], "SESSION_COOKIE_PATH"),
        (
            &[("SESSION_COOKIE_PATH", "/app")],
            "SESSION_COOKIE_NAME \"__Host-id\"",
        ),
        (
            &[("SESSION_COOKIE_DOMAIN", ".example.com")],
            "SESSION_COOKIE_DOMAIN",
        ),
        (
            &[("SESSION_USE_SIGNER", "false")],
            "SESSION_USE_SIGNER is to be true",
        ),
        (
            &[("SESSION_ID_LENGTH", "16")],
            "SESSION_ID_LENGTH is to be 32",
        ),
        (
            &[("SESSION_ID_LENGTH", "long")],
            "SESSION_ID_LENGTH is to be 32",
        ),
        (
            &[("PERMANENT_SESSION_LIFETIME", "hunter2")],
            "PERMANENT_SESSION_LIFETIME is to be a duration",
        ),
        (
            &[("PERMANENT_SESSION_LIFETIME", "0")],
            "PERMANENT_SESSION_LIFETIME is 0ns",
        ),
        (
            &[("SESSION_IDLE_TIMEOUT", "401days")],
            "SESSION_IDLE_TIMEOUT is over 400 days",
        ),
        (
            &[("SESSION_ABSOLUTE_TIMEOUT", "60")],
            "SESSION_ABSOLUTE_TIMEOUT (60s) is shorter than SESSION_IDLE_TIMEOUT",
        ),
        (
            &[
                ("PERMANENT_SESSION_LIFETIME", "1"),
                ("SESSION_IDLE_TIMEOUT", "1"),
            ],
            "PERMANENT_SESSION_LIFETIME and SESSION_IDLE_TIMEOUT",
        ),
        (
            &[
                ("SESSION_REFRESH_EACH_REQUEST", "1"),
                ("SESSION_REFRESH_SHARE", "1"),
            ],
            "leave one out",
        ),
        (&[("SESSION_REFRESH_SHARE", "2")], "SESSION_REFRESH_SHARE"),
        (
            &[("SESSION_SERIALIZATION_FORMAT", "pickle")],
            "msgpack or json",
        ),
        (&[("SESSION_SERVER_ERRORS", "ignore")], "rollback or commit"),
        (
            &[("SESSION_MAX_KEYS", "-1")],
            "SESSION_MAX_KEYS is to be a whole number above zero",
        ),
        (&[("SESSION_MAX_DEPTH", "0")], "SESSION_MAX_DEPTH"),
        (&[("SESSION_MAX_PER_USER", "1001")], "SESSION_MAX_PER_USER"),
        (
            &[("SESSION_CLEANUP_N_REQUESTS", "0")],
            "SESSION_CLEANUP_N_REQUESTS",
        ),
        (
            &[("SESSION_SWEEP_INTERVAL", "0.1")],
            "SESSION_SWEEP_INTERVAL is to be a second at least",
        ),
        (
            &[
                ("SESSION_SWEEP_INTERVAL", "60"),
                ("SESSION_CLEANUP_N_REQUESTS", "9"),
            ],
            "leave one out",
        ),
        (
            &[
                ("SESSION_COOKIE_SECURE", "false"),
                ("SESSION_COOKIE_SAMESITE", "None"),
            ],
            "SESSION_COOKIE_SECURE=false",
        ),
        (&[("SESSION_SECRET", KEY)], "SECRET_KEY and SESSION_SECRET"),
        (
            &[("SECRET_KEY_FALLBACKS", "hunter2")],
            "SECRET_KEY_FALLBACKS: signing key 2 has 7 bytes",
        ),
        (&[("SECRET_KEY", KEY)], "SECRET_KEY is set twice"),
        (
            &[("SESSION_COOKIE_NMAE", "sid")],
            "did you mean SESSION_COOKIE_NAME?",
        ),
        (
            &[("PERMANENT_SESSION_LIFE", "1")],
            "did you mean PERMANENT_SESSION_LIFETIME?",
        ),
        (
            &[("SESSION_TYPE", "redis")],
            "SESSION_STORE and SESSION_TYPE",
        ),
    ] {
        let error = refused(pairs);
        assert!(error.contains(says), "{pairs:?}: {error}");
    }
    for (pairs, says) in [
        (
            &[("SESSION_STORE", "memory://")][..],
            "there is no signing key",
        ),
        (&[("SECRET_KEY", KEY)], "no store is chosen"),
        (
            &[("SECRET_KEY", "hunter2"), ("SESSION_STORE", "memory://")],
            "SECRET_KEY: signing key 1 has 7 bytes",
        ),
    ] {
        let error = SessionSettings::from_pairs(pairs.iter().copied())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(says) && !error.contains("hunter2"),
            "{error}"
        );
    }
}

#[test]
fn what_other_programs_set_is_passed_over() {
    let foreign = [
        ("PATH", "/bin"),
        ("SESSION_MANAGER", "local/host:@/tmp/.ICE-unix/1"),
        ("SECRET_KEY_BASE", "of another framework"),
        ("session", "x"),
    ];
    assert!(with(&foreign).is_ok());
}

#[test]
fn keys_come_as_a_ring() {
    let ring = |settings: SessionSettings| format!("{:?}", settings.keys().unwrap());
    let two = with(&[("SECRET_KEY_FALLBACKS", KEY)]).unwrap();
    assert_eq!(ring(two), "SigningKeys(2 REDACTED)");
    let json = format!(r#"["{KEY}", "a,key,with,commas,that,is,long,enough"]"#);
    let three = with(&[("SECRET_KEY_FALLBACKS", &json)]).unwrap();
    assert_eq!(ring(three), "SigningKeys(3 REDACTED)");
    let list = format!("{KEY}, {KEY}");
    let ours = [
        ("SESSION_SECRET", list.as_str()),
        ("SESSION_STORE", "null://"),
    ];
    assert_eq!(
        ring(SessionSettings::from_pairs(ours).unwrap()),
        "SigningKeys(2 REDACTED)"
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key").display().to_string();
    let made = [
        ("SESSION_SECRET_FILE", path.as_str()),
        ("SESSION_STORE", "null://"),
    ];
    assert_eq!(
        ring(SessionSettings::from_pairs(made).unwrap()),
        "SigningKeys(1 REDACTED)"
    );
}

#[test]
fn nothing_secret_prints() {
    let settings = SessionSettings::from_pairs([
        ("SECRET_KEY", KEY),
        ("SESSION_STORE", "redis://user:hunter2@host"),
    ])
    .unwrap();
    let debug = format!("{settings:?}");
    assert!(!debug.contains("hunter2"), "{debug}");
    assert!(debug.contains("redis://…"), "{debug}");
    assert_eq!(settings.store_url(), "redis://user:hunter2@host");
}

#[test]
fn a_file_says_the_same_in_its_own_types() {
    let from_file = file(&format!(
        r#"{{
            "store": "memory://", "secret_key": "{KEY}", "SECRET_KEY_FALLBACKS": ["{KEY}"],
            "cookie_name": "sid", "SESSION_COOKIE_SECURE": true, "session_cookie_samesite": "Strict",
            "PERMANENT_SESSION_LIFETIME": 90, "absolute_timeout": "2h", "refresh_share": 0.5,
            "id_length": 32, "cookie_domain": null, "cleanup_n_requests": 100
        }}"#
    ))
    .unwrap();
    let from_pairs = with(&[
        ("SECRET_KEY_FALLBACKS", KEY),
        ("SESSION_COOKIE_NAME", "sid"),
        ("SESSION_COOKIE_SAMESITE", "Strict"),
        ("SESSION_IDLE_TIMEOUT", "90"),
        ("SESSION_ABSOLUTE_TIMEOUT", "7200"),
        ("SESSION_REFRESH_SHARE", "0.5"),
        ("SESSION_CLEANUP_N_REQUESTS", "100"),
    ])
    .unwrap();
    assert_eq!(format!("{from_file:?}"), format!("{from_pairs:?}"));
    let addresses =
        format!(r#"{{ "type": "memcached", "memcached": ["a:1", "b:2"], "secret_key": "{KEY}" }}"#);
    assert_eq!(file(&addresses).unwrap().store_url(), "memcached://a:1,b:2");
    let mode = |mode: &str| {
        file(&format!(
            r#"{{ "type": "filesystem", "file_dir": "x", "file_mode": {mode}, "secret": "{KEY}" }}"#
        ))
    };
    assert!(mode("384").is_ok() && mode("\"0600\"").is_ok());
    assert!(mode("600").is_err() && mode("true").is_err());
}

#[test]
fn a_file_with_a_mistake_is_refused_by_name() {
    let refused = |line: &str| {
        let text = format!(r#"{{ "store": "memory://", "secret_key": "{KEY}", {line} }}"#);
        let error = file(&text).unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
        error
    };
    for (line, says) in [
        (
            r#""coookie_name": "sid""#,
            "did you mean SESSION_COOKIE_NAME?",
        ),
        (r#""path": "/""#, "there is no setting path"),
        (
            r#""cookie_name": 5"#,
            "SESSION_COOKIE_NAME is to be a cookie's name",
        ),
        (
            r#""cookie_secure": 5"#,
            "SESSION_COOKIE_SECURE is to be true or false",
        ),
        (
            r#""max_keys": "hunter2""#,
            "SESSION_MAX_KEYS is to be a whole number",
        ),
        (
            r#""max_keys": 1.5"#,
            "SESSION_MAX_KEYS is to be a whole number",
        ),
        (
            r#""idle_timeout": -1"#,
            "SESSION_IDLE_TIMEOUT is to be a duration",
        ),
        (
            r#""idle_timeout": true"#,
            "SESSION_IDLE_TIMEOUT is to be a duration",
        ),
        (
            r#""cookie_name": "a", "SESSION_COOKIE_NAME": "b""#,
            "SESSION_COOKIE_NAME is set twice",
        ),
        (
            r#""SECRET_KEY_FALLBACKS": true"#,
            "SECRET_KEY_FALLBACKS is to be older keys",
        ),
    ] {
        let error = refused(line);
        assert!(error.contains(says), "{line}: {error}");
    }
}

#[test]
fn sweeping_is_as_set() {
    let sweep = |pairs: &[_]| with(pairs).unwrap().sweep;
    assert_eq!(sweep(&[]), Sweep::Every(Duration::from_secs(600)));
    assert_eq!(
        sweep(&[("SESSION_SWEEP_INTERVAL", "1h")]),
        Sweep::Every(Duration::from_secs(3600))
    );
    assert_eq!(sweep(&[("SESSION_SWEEP_INTERVAL", "never")]), Sweep::Never);
    let requests = NonZeroU64::new(100).unwrap();
    assert_eq!(
        sweep(&[("SESSION_CLEANUP_N_REQUESTS", "100")]),
        Sweep::AfterRequests(requests)
    );
}

#[cfg(all(feature = "flask", feature = "memcached", feature = "redis"))]
#[tokio::test]
async fn sessions_are_shared_with_flask_where_that_is_set() {
    let shared = |pairs: &[(&'static str, &'static str)]| {
        let mark = [("SESSION_SHARED_WITH_FLASK", "true")];
        SessionSettings::from_pairs(mark.iter().chain(pairs).copied())
    };
    let redis = [("SESSION_TYPE", "redis"), ("SESSION_REDIS", "redis://host")];
    let memcached = [
        ("SESSION_TYPE", "memcached"),
        ("SESSION_MEMCACHED", "host:11211"),
    ];
    let signed = [("SESSION_USE_SIGNER", "true"), ("SECRET_KEY", "hunter2")];
    for (pairs, cookies) in [
        (redis.to_vec(), "FlaskCookies(plain)"),
        ([&redis[..], &signed[1..]].concat(), "FlaskCookies(plain)"),
        ([memcached, signed].concat(), "FlaskCookies(1 REDACTED)"),
        (
            [&redis[..], &signed, &[("SECRET_KEY_FALLBACKS", "a,b")]].concat(),
            "FlaskCookies(3 REDACTED)",
        ),
    ] {
        let settings = shared(&pairs).unwrap();
        assert!(settings.keys().is_none());
        assert!(format!("{settings:?}").contains(cookies), "{settings:?}");
        let layer = format!("{:?}", settings.layer().await.unwrap());
        assert!(
            layer.contains("\"session\"") && layer.contains("Flask"),
            "{layer}"
        );
        assert!(settings.store().await.is_err());
    }
    for (pairs, says) in [
        (
            vec![("SESSION_STORE", "sqlite://a.db")],
            "needs a store on Redis or on memcached",
        ),
        (
            [
                redis,
                [("SESSION_USE_SIGNER", "1"), ("SESSION_PERMANENT", "1")],
            ]
            .concat(),
            "SECRET_KEY is to be Flask's",
        ),
        (
            [&redis[..], &[("SESSION_SECRET", "hunter2")]].concat(),
            "SESSION_SECRET is not Flask's",
        ),
        (
            [&redis[..], &[("SESSION_ID_LENGTH", "16")]].concat(),
            "SESSION_ID_LENGTH is to be 32",
        ),
    ] {
        let error = shared(&pairs).unwrap_err().to_string();
        assert!(
            error.contains(says) && !error.contains("hunter2"),
            "{error}"
        );
    }
}

#[cfg(feature = "memory")]
#[tokio::test]
async fn settings_build_a_layer_and_a_store() {
    let settings = with(&[("SESSION_CLEANUP_N_REQUESTS", "5")]).unwrap();
    let layer = settings.layer().await.unwrap();
    assert!(format!("{layer:?}").contains("CountingStore"), "{layer:?}");
    assert!(format!("{:?}", with(&[]).unwrap().store().await.unwrap()).contains("MemoryStore"));
    let nowhere = [("SECRET_KEY", KEY), ("SESSION_STORE", "nosuch://hunter2")];
    let error = SessionSettings::from_pairs(nowhere)
        .unwrap()
        .layer()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Config);
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

#[test]
fn the_environment_is_read() {
    const NAME: &str = "settings::tests::the_environment_is_read";
    const CHILD: &str = "SESSION_LAYER_TEST_SETTINGS";
    if env::var_os(CHILD).is_some() {
        let says = |read: Result<SessionSettings, ConfigError>| match read {
            Ok(settings) => settings.store_url().to_owned(),
            Err(error) => error.to_string(),
        };
        println!("plain: {}", says(SessionSettings::from_env()));
        println!(
            "flask: {}",
            says(SessionSettings::from_env_with_prefix("FLASK_"))
        );
        return;
    }
    // A test cannot change its own environment safely.
    let child = std::process::Command::new(env::current_exe().unwrap())
        .args([NAME, "--exact", "--nocapture"])
        .env_clear()
        .envs([
            (CHILD, "1"),
            ("SESSION_STORE", "null://plain"),
            ("SECRET_KEY", KEY),
        ])
        .envs([
            ("FLASK_SESSION_TYPE", "null"),
            ("FLASK_SECRET_KEY", KEY),
            ("FLASK_DEBUG", "1"),
        ])
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&child.stdout);
    assert!(out.contains("plain: null://plain\n"), "{out}");
    assert!(out.contains("flask: null://\n"), "{out}");
}

#[test]
fn every_setting_is_read() {
    // Of those that belong to a type of store, `store_url::tests` shows it.
    for setting in SETTINGS
        .iter()
        .filter(|setting| !store_url::is_of_a_type(setting.name))
    {
        let mut pairs = BTreeMap::from(BASE);
        if ["SESSION_TYPE", "SESSION_KEY_PREFIX"].contains(&setting.name) {
            pairs.remove("SESSION_STORE");
            pairs.insert("SESSION_TYPE", "redis");
            pairs.insert("SESSION_REDIS", "redis://host");
        }
        if ["SESSION_SECRET", "SESSION_SECRET_FILE"].contains(&setting.name) {
            pairs.remove("SECRET_KEY");
        }
        // No setting takes an empty text, so whoever reads it complains.
        pairs.insert(setting.name, "");
        let error = SessionSettings::from_pairs(pairs).unwrap_err().to_string();
        assert!(error.contains(setting.name), "{}: {error}", setting.name);
        assert!(!error.contains("no effect"), "{error}");
    }
}

/// The rows of the tables in `docs/configuration.md` that begin with a setting's name.
fn documented() -> Vec<Vec<&'static str>> {
    include_str!("../../docs/configuration.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"))
        .map(|row| row.split(" | ").collect())
        .collect()
}

#[test]
fn the_documentation_lists_what_there_is() {
    let documented = documented();
    assert_eq!(documented.len(), SETTINGS.len());
    for (row, setting) in documented.iter().zip(SETTINGS) {
        let [name, accepts, default, flask, _difference] = row[..] else {
            panic!("{row:?} has not five cells");
        };
        assert_eq!(name, format!("{}`", setting.name));
        assert_eq!(accepts, setting.accepts, "{name}");
        assert_eq!(default, setting.default, "{name}");
        assert_eq!(flask != "–", setting.flask, "{name}");
    }
}
