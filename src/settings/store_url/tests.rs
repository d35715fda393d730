use super::super::names;
use super::super::values::Value;
use super::*;

/// `A=1 B=2`: the URL, or the error.
fn url_of(settings: &str) -> Result<String, String> {
    let mut entries = Entries::new();
    for pair in settings.split_whitespace() {
        let (name, value) = pair.split_once('=').unwrap();
        let setting = names::find(name).unwrap_or_else(|| panic!("{name}"));
        entries.add(setting, Value::Text(value.to_owned())).unwrap();
    }
    let url = store_url(&mut entries).map_err(|error| error.to_string())?;
    let left: Vec<_> = entries.left().collect();
    assert!(left.is_empty(), "{settings} leaves {left:?}");
    Ok(url)
}

const URLS: &[(&str, &str)] = &[
    (
        "SESSION_STORE=sqlite://a.db?table=t",
        "sqlite://a.db?table=t",
    ),
    (
        "SESSION_TYPE=redis SESSION_REDIS=rediss://u:p@h:1/2",
        "rediss://u:p@h:1/2",
    ),
    (
        "SESSION_TYPE=Redis SESSION_REDIS=redis://h?protocol=resp3 SESSION_KEY_PREFIX=a:é",
        "redis://h?protocol=resp3&prefix=a:%C3%A9",
    ),
    (
        "SESSION_TYPE=memcached SESSION_MEMCACHED=a:1,b:2 SESSION_KEY_PREFIX=app:",
        "memcached://a:1,b:2?prefix=app:",
    ),
    (
        "SESSION_TYPE=memcached SESSION_MEMCACHED=memcached://a:1,b:2?max_payload=9",
        "memcached://a:1,b:2?max_payload=9",
    ),
    (
        r#"SESSION_TYPE=memcached SESSION_MEMCACHED=["a:1","[::1]:2"]"#,
        "memcached://a:1,[::1]:2",
    ),
    (
        "SESSION_TYPE=memcached SESSION_MEMCACHED=[::1]:2,a:1",
        "memcached://[::1]:2,a:1",
    ),
    (
        "SESSION_TYPE=filesystem SESSION_FILE_DIR=/var/a?b SESSION_FILE_THRESHOLD=500 \
             SESSION_FILE_MODE=0600",
        "file:///var/a%3Fb?max_records=500",
    ),
    (
        "SESSION_TYPE=filesystem SESSION_FILE_DIR=sessions SESSION_FILE_MODE=0o600",
        "file://sessions",
    ),
    (
        "SESSION_TYPE=mongodb SESSION_MONGODB=mongodb://h",
        "mongodb://h/",
    ),
    (
        "SESSION_TYPE=mongodb SESSION_MONGODB=mongodb+srv://u:p@h/app?w=1 \
             SESSION_MONGODB_DB=app SESSION_MONGODB_COLLECT=c",
        "mongodb+srv://u:p@h/app?w=1&collection=c",
    ),
    (
        "SESSION_TYPE=mongodb SESSION_MONGODB=mongodb://a:1,b:2 SESSION_MONGODB_DB=app",
        "mongodb://a:1,b:2/app",
    ),
    (
        "SESSION_TYPE=sqlalchemy SESSION_SQLALCHEMY=sqlite:///app.db",
        "sqlite://app.db",
    ),
    (
        "SESSION_TYPE=sqlalchemy SESSION_SQLALCHEMY=sqlite:////var/app.db \
             SESSION_SQLALCHEMY_TABLE=t",
        "sqlite:///var/app.db?table=t",
    ),
    (
        "SESSION_TYPE=sqlalchemy SESSION_SQLALCHEMY=postgresql+psycopg2://u:p@h/d \
             SESSION_SQLALCHEMY_SCHEMA=s SESSION_SQLALCHEMY_TABLE=t",
        "postgres://u:p@h/d?table=t&schema=s",
    ),
    (
        "SESSION_TYPE=sqlalchemy SESSION_SQLALCHEMY=mysql+pymysql://u@h/d",
        "mysql://u@h/d",
    ),
    (
        "SESSION_TYPE=sqlalchemy SESSION_SQLALCHEMY=MariaDB://u@h/d",
        "mysql://u@h/d",
    ),
    (
        "SESSION_TYPE=postgresql SESSION_POSTGRESQL=postgresql://h/d \
             SESSION_POSTGRESQL_TABLE=t SESSION_POSTGRESQL_SCHEMA=s",
        "postgres://h/d?table=t&schema=s",
    ),
    ("SESSION_TYPE=dynamodb", "dynamodb://Sessions"),
    (
        "SESSION_TYPE=dynamodb SESSION_DYNAMODB=http://127.0.0.1:8000 \
             SESSION_DYNAMODB_TABLE=t SESSION_DYNAMODB_TABLE_EXISTS=True",
        "dynamodb://t?endpoint=http://127.0.0.1:8000&create_table=false",
    ),
    (
        "SESSION_TYPE=dynamodb SESSION_DYNAMODB=eu-central-1 \
             SESSION_DYNAMODB_TABLE_EXISTS=false",
        "dynamodb://Sessions?region=eu-central-1&create_table=true",
    ),
    ("SESSION_TYPE=null", "null://"),
];

#[test]
fn each_type_becomes_the_url_of_its_store() {
    for (settings, url) in URLS {
        assert_eq!(url_of(settings).as_deref(), Ok(*url), "{settings}");
    }
}

#[test]
fn what_cannot_be_is_an_error_that_names_the_setting_and_what_it_takes() {
    for (settings, says) in [
        ("", "SESSION_STORE"),
        (
            "SESSION_TYPE=redis SESSION_STORE=memory://",
            "leave one out",
        ),
        (
            "SESSION_TYPE=reddis",
            "SESSION_TYPE is to be redis, memcached",
        ),
        ("SESSION_TYPE=redis", "SESSION_REDIS is to be a URL such as"),
        (
            "SESSION_TYPE=memcached",
            "SESSION_MEMCACHED is to be addresses",
        ),
        (
            "SESSION_TYPE=filesystem",
            "SESSION_FILE_DIR is to be a directory",
        ),
        ("SESSION_TYPE=mongodb", "SESSION_MONGODB is to be a URL"),
        (
            "SESSION_TYPE=sqlalchemy",
            "SESSION_SQLALCHEMY is to be a URL",
        ),
        (
            "SESSION_TYPE=postgresql",
            "SESSION_POSTGRESQL is to be a URL",
        ),
        ("SESSION_TYPE=cachelib", "filesystem"),
        (
            "SESSION_TYPE=memcached SESSION_MEMCACHED=a:1,hunter2@b",
            "SESSION_MEMCACHED is to be addresses",
        ),
        (
            "SESSION_TYPE=memcached SESSION_MEMCACHED=a?x=1,b",
            "addresses",
        ),
        (
            "SESSION_TYPE=memcached SESSION_MEMCACHED=a,,b",
            "empty item",
        ),
        (
            r#"SESSION_TYPE=memcached SESSION_MEMCACHED=["a:1","#,
            "SESSION_MEMCACHED is to be addresses",
        ),
        (
            "SESSION_TYPE=filesystem SESSION_FILE_DIR=x SESSION_FILE_MODE=0644",
            "SESSION_FILE_MODE is to be 0600",
        ),
        (
            "SESSION_TYPE=filesystem SESSION_FILE_DIR=x SESSION_FILE_MODE=rw",
            "SESSION_FILE_MODE is to be 0600",
        ),
        (
            "SESSION_TYPE=filesystem SESSION_FILE_DIR=x SESSION_FILE_THRESHOLD=0",
            "SESSION_FILE_THRESHOLD is to be a whole number",
        ),
        (
            "SESSION_TYPE=mongodb SESSION_MONGODB=mongodb://h/a SESSION_MONGODB_DB=b",
            "two databases",
        ),
        (
            "SESSION_TYPE=sqlalchemy SESSION_SQLALCHEMY=sqlite://hunter2.db",
            "sqlite:///relative.db",
        ),
        (
            "SESSION_TYPE=sqlalchemy SESSION_SQLALCHEMY=sqlite:///:memory:",
            "SESSION_STORE=memory://",
        ),
        (
            "SESSION_TYPE=sqlalchemy SESSION_SQLALCHEMY=oracle://u:hunter2@h/d",
            "SESSION_SQLALCHEMY is to be",
        ),
        (
            "SESSION_TYPE=sqlalchemy SESSION_SQLALCHEMY=mysql://h/d SESSION_SQLALCHEMY_SCHEMA=s",
            "SESSION_SQLALCHEMY_SCHEMA",
        ),
        (
            "SESSION_TYPE=sqlalchemy SESSION_SQLALCHEMY=mysql://h/d SESSION_SQLALCHEMY_SEQUENCE=s",
            "SESSION_SQLALCHEMY_SEQUENCE is to be left out",
        ),
        (
            "SESSION_TYPE=dynamodb SESSION_DYNAMODB=u:hunter2@host",
            "SESSION_DYNAMODB is to be",
        ),
        (
            "SESSION_TYPE=dynamodb SESSION_DYNAMODB_TABLE_EXISTS=maybe",
            "SESSION_DYNAMODB_TABLE_EXISTS is to be true or false",
        ),
        ("SESSION_STORE=memory:// SESSION_KEY_PREFIX=a", "`?prefix="),
        (
            "SESSION_TYPE=filesystem SESSION_FILE_DIR=x SESSION_KEY_PREFIX=a",
            "SESSION_KEY_PREFIX goes with",
        ),
        (
            "SESSION_TYPE=redis SESSION_REDIS=redis://u:hunter2@h SESSION_MONGODB_DB=a",
            "SESSION_MONGODB_DB goes with SESSION_TYPE=mongodb",
        ),
        (
            "SESSION_STORE=redis://u:hunter2@h SESSION_REDIS=redis://h",
            "SESSION_REDIS goes with SESSION_TYPE=redis",
        ),
    ] {
        let error = url_of(settings).unwrap_err();
        assert!(error.contains(says), "{settings}: {error}");
        assert!(!error.contains("hunter2"), "{settings}: {error}");
    }
}

#[test]
fn every_setting_of_a_type_is_a_setting_and_is_read() {
    // These are refused by name, whatever they say: see above.
    let refused = [
        "SESSION_CACHELIB",
        "SESSION_SQLALCHEMY_SEQUENCE",
        "SESSION_SQLALCHEMY_BIND_KEY",
    ];
    for (kind, of_kind) in OF_TYPES {
        let types = names::find("SESSION_TYPE").unwrap().accepts;
        assert!(types.contains(kind) || *kind == "cachelib");
        for name in *of_kind {
            assert!(names::find(name).is_some(), "{name}");
            let set = format!("{name}=");
            let read = URLS.iter().any(|(settings, _)| settings.contains(&set));
            assert!(
                read || refused.contains(name),
                "{name} is in no row of the table"
            );
        }
    }
}

/// Of the stores that do not look for their server, or make their files, when they are opened.
#[cfg(all(
    feature = "memcached",
    feature = "mongodb",
    feature = "null",
    feature = "redis"
))]
#[tokio::test]
async fn the_stores_know_these_urls() {
    use crate::store::AnyStore;

    let schemes = [
        "redis://",
        "rediss://",
        "memcached://",
        "mongodb://",
        "null://",
    ];
    let mut opened = 0;
    for (settings, url) in URLS {
        if schemes.iter().any(|scheme| url.starts_with(scheme)) {
            if let Err(error) = AnyStore::connect(url).await {
                // A prefix that no store takes is still passed on.
                assert!(error.to_string().contains("prefix"), "{settings}: {error}");
            }
            opened += 1;
        }
    }
    assert!(opened >= 8, "{opened}");
}
