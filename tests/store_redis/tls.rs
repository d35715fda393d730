//! TLS, with certificates that `openssl` makes.

use std::path::{Path, PathBuf};

use session_layer::store::{RedisStore, SessionStore, StoreErrorKind};

use crate::server::{Folder, Server, free_port, program, run};
use crate::servers;
use crate::{get, key, kind, new, put};

struct Certificates(Folder);

impl Certificates {
    /// An authority, and a server and a client that it vouches for.
    fn make() -> Self {
        let made = Self(Folder::new("certificates"));
        made.authority("ca");
        made.authority("other");
        made.signed("server", "subjectAltName=IP:127.0.0.1");
        made.signed("client", "extendedKeyUsage=clientAuth");
        made
    }

    fn path(&self, name: &str) -> String {
        let path: PathBuf = self.0.path().join(name);
        path.into_os_string().into_string().unwrap()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(Path::new(&self.path(name))).unwrap()
    }

    fn openssl(&self, words: &str) {
        let folder = self.0.path().display().to_string();
        let words = words.split(' ').map(|word| word.replace("DIR", &folder));
        run(&program("OPENSSL", "openssl", &[]), words);
    }

    fn authority(&self, name: &str) {
        self.openssl(&format!(
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority \
             -keyout DIR/{name}.key -out DIR/{name}.crt"
        ));
    }

    fn signed(&self, name: &str, extension: &str) {
        let file = self.0.path().join(format!("{name}.ext"));
        crate::server::write(&file, extension);
        self.openssl(&format!(
            "req -newkey rsa:2048 -nodes -subj /CN={name} -keyout DIR/{name}.key -out DIR/{name}.csr"
        ));
        self.openssl(&format!(
            "x509 -req -days 2 -in DIR/{name}.csr -CA DIR/ca.crt -CAkey DIR/ca.key \
             -CAcreateserial -extfile DIR/{name}.ext -out DIR/{name}.crt"
        ));
    }

    fn server(&self, clients: &str, extra: &[&str]) -> Server {
        let port = free_port();
        let (text, crt, key, ca) = (
            port.to_string(),
            self.path("server.crt"),
            self.path("server.key"),
            self.path("ca.crt"),
        );
        let mut arguments = vec![
            "--port",
            "0",
            "--tls-port",
            &text,
            "--tls-cert-file",
            &crt,
            "--tls-key-file",
            &key,
            "--tls-ca-cert-file",
            &ca,
            "--tls-auth-clients",
            clients,
        ];
        arguments.extend(extra);
        servers::start_on(port, Folder::new("redis"), &arguments)
    }
}

#[tokio::test]
#[ignore = "needs Redis: run tests/run"]
async fn a_server_with_tls_is_trusted_for_its_certificate_only() {
    let certificates = Certificates::make();
    let server = certificates.server("no", &["--requirepass", "hunter2"]);
    let address = server.address();
    let url = format!("rediss://:hunter2@{address}");
    let ca = certificates.path("ca.crt");
    let store = RedisStore::connect(&format!("{url}?ca={ca}"))
        .await
        .unwrap();
    put(&store, 0, b"secret").await;
    let builder = RedisStore::builder(&url).with_ca_certificates(certificates.read("ca.crt"));
    assert_eq!(
        &get(&builder.build().unwrap(), 0).await.payload()[..],
        b"secret"
    );

    let untrusting = RedisStore::connect(&url).await.unwrap();
    assert_eq!(
        kind(untrusting.load(&key(0)).await),
        StoreErrorKind::Unavailable
    );
    let other = certificates.path("other.crt");
    let wrong = RedisStore::connect(&format!("{url}?ca={other}"))
        .await
        .unwrap();
    let error = wrong.load(&key(0)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert!(
        format!("{error:?}").to_lowercase().contains("certificate"),
        "{error:?}"
    );
    // The certificate is for the address, not for the name.
    let by_name = format!("rediss://:hunter2@localhost:{}?ca={ca}", server.port());
    let by_name = RedisStore::connect(&by_name).await.unwrap();
    assert_eq!(
        kind(by_name.load(&key(0)).await),
        StoreErrorKind::Unavailable
    );
    let plain = RedisStore::connect(&format!("redis://:hunter2@{address}"))
        .await
        .unwrap();
    let plain = kind(plain.load(&key(0)).await);
    assert!(
        matches!(
            plain,
            StoreErrorKind::Unavailable | StoreErrorKind::Other | StoreErrorKind::Timeout
        ),
        "{plain:?}"
    );
    let useless = RedisStore::builder(format!("redis://{address}")).with_ca_certificates("x");
    assert_eq!(kind(useless.build()), StoreErrorKind::Config);
}

#[tokio::test]
#[ignore = "needs Redis: run tests/run"]
async fn a_client_shows_its_certificate() {
    let certificates = Certificates::make();
    let server = certificates.server("yes", &[]);
    let url = format!(
        "rediss://{}?ca={}",
        server.address(),
        certificates.path("ca.crt")
    );
    let nobody = RedisStore::connect(&url).await.unwrap();
    let refused = kind(nobody.load(&key(0)).await);
    assert_eq!(refused, StoreErrorKind::Unavailable);
    let (crt, private) = (
        certificates.path("client.crt"),
        certificates.path("client.key"),
    );
    let known = format!("{url}&cert={crt}&key={private}");
    let store = RedisStore::connect(&known).await.unwrap();
    put(&store, 0, b"").await;
    let builder = RedisStore::builder(&url).with_client_certificate(
        certificates.read("client.crt"),
        certificates.read("client.key"),
    );
    let shown = format!("{builder:?}");
    assert!(!shown.contains("PRIVATE"), "{shown}");
    get(&builder.build().unwrap(), 0).await;
}

#[tokio::test]
#[ignore = "needs Redis: run tests/run"]
async fn clusters_and_sentinels_speak_tls() {
    let certificates = Certificates::make();
    let ca = certificates.path("ca.crt");
    let bus = free_port().to_string();
    let node = certificates.server(
        "no",
        &[
            "--cluster-enabled",
            "yes",
            "--cluster-port",
            &bus,
            "--tls-cluster",
            "yes",
        ],
    );
    let cli = |server: &Server, words: &str| {
        let port = server.port().to_string();
        let mut arguments = vec!["-p", &port, "--tls", "--cacert", &ca];
        arguments.extend(words.split(' '));
        run(&program("REDIS_CLI", "redis-cli", &[]), arguments)
    };
    cli(&node, "cluster addslotsrange 0 16383");
    servers::until("the cluster", || {
        cli(&node, "cluster info").contains("cluster_state:ok")
    });
    let url = format!("rediss+cluster://{}?ca={ca}", node.address());
    put(&RedisStore::connect(&url).await.unwrap(), 0, b"").await;

    let primary = certificates.server("no", &[]);
    let (port, folder) = (free_port(), Folder::new("sentinel"));
    let file = folder.path().join("sentinel.conf");
    crate::server::write(
        &file,
        &format!(
            "port 0\ntls-port {port}\nbind 127.0.0.1\ntls-replication yes\ntls-auth-clients no\n\
             tls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {ca}\ndir {}\n\
             sentinel monitor mymaster 127.0.0.1 {} 1\n",
            certificates.path("server.crt"),
            certificates.path("server.key"),
            folder.path().display(),
            primary.port(),
        ),
    );
    let program = program("REDIS_SENTINEL", "redis-sentinel", &[]);
    let file = file.to_str().unwrap().to_owned();
    let sentinel = Server::start("sentinel", folder, port, [program, file]);
    servers::until("the sentinel", || {
        cli(&sentinel, "info sentinel").contains("status=ok")
    });
    let url = format!("rediss+sentinel://{}/mymaster?ca={ca}", sentinel.address());
    let store = RedisStore::connect(&url).await.unwrap();
    store.create(&key(0), &new(b"")).await.unwrap();
    get(&store, 0).await;
}
