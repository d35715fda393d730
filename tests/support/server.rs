//! Real servers for the tests: started on free ports of 127.0.0.1 with data of their own, and gone
//! when the test program ends, however it ends.
//!
//! The tests that need one are marked `#[ignore]`; `tests/run` installs the servers and runs them. A
//! server that cannot be started fails the test.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its own part"
)]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take to answer after it was started, on a busy machine.
const READY: Duration = Duration::from_secs(60);

/// Starts `"$@"` with its output in `$log`, says its process id, and kills it at the end of stdin,
/// which comes when the test program ends, too. Then removes `$dir`, unless it is told to keep it.
const KEEPER: &str = r#"
setsid "$@" </dev/null >>"$log" 2>&1 &
echo $!
read -r word
kill -s CONT -- -$! 2>/dev/null
kill -s KILL -- -$! 2>/dev/null
wait
[ "$word" = keep ] || rm -rf -- "$dir"
"#;

/// A folder for a server's data, open to the user that it runs as. Removed when it is dropped.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!(
            "session-layer-{name}-{}-{:08x}",
            std::process::id(),
            rand::random::<u32>()
        ));
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A port that was free a moment ago, and that the system hands to nobody else soon.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// A server process. Killed, with its data, when this is dropped or the test program ends.
pub struct Server {
    name: &'static str,
    arguments: Vec<String>,
    folder: Folder,
    port: u16,
    running: Option<Running>,
}

struct Running {
    keeper: Child,
    stdin: ChildStdin,
    pid: u32,
}

impl Server {
    /// Starts `arguments`, a program and what it is told, and waits until `port` of 127.0.0.1 accepts
    /// connections. The server's data is below `folder`, which is the server's from now on.
    ///
    /// Blocks. Panics with the end of the server's log when it does not come up.
    pub fn start<A: Into<String>>(
        name: &'static str,
        folder: Folder,
        port: u16,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        let mut server = Self {
            name,
            arguments: arguments.into_iter().map(Into::into).collect(),
            folder,
            port,
            running: None,
        };
        server.start_again();
        server
    }

    /// Starts a server that was stopped, on the same port and data. Does not wait for it to be ready.
    pub fn begin_start(&mut self) {
        assert!(self.running.is_none(), "{} runs already", self.name);
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER, "sh"])
            .args(&self.arguments)
            .env("log", self.log())
            .env("dir", self.folder())
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        self.running = Some(Running {
            stdin: keeper.stdin.take().unwrap(),
            keeper,
            pid: line.trim().parse().unwrap(),
        });
    }

    /// The same, and waits until the port accepts connections.
    pub fn start_again(&mut self) {
        self.begin_start();
        let deadline = Instant::now() + READY;
        let pid = self.pid();
        while TcpStream::connect_timeout(&self.address(), Duration::from_millis(500)).is_err() {
            assert!(
                Instant::now() < deadline && is_running(pid),
                "{} ({}) did not come up:\n{}",
                self.name,
                self.arguments.join(" "),
                self.log_end()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Kills the server as a power cut would, and waits until it is gone. Its data stays.
    pub fn kill(&mut self) {
        let mut running = self.running.take().expect("it runs");
        // Children that have left the group, such as PostgreSQL's, before they see their parent gone.
        signal("KILL", &family(running.pid));
        let _ = running.stdin.write_all(b"keep\n");
        drop(running.stdin);
        running.keeper.wait().unwrap();
    }

    /// Asks the server to end, and waits until it has. Its data stays.
    pub fn stop(&mut self) {
        let running = self.running.as_ref().expect("it runs");
        signal("TERM", &[running.pid]);
        let deadline = Instant::now() + READY;
        while is_running(running.pid) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill();
    }

    /// Stops every thread of the server, which keeps its connections and answers nothing.
    pub fn freeze(&self) {
        let family = family(self.pid());
        signal("STOP", &family);
        // A thread that is running may answer a last request before it notices.
        let deadline = Instant::now() + READY;
        while !family.iter().all(|pid| is_frozen(*pid)) {
            assert!(Instant::now() < deadline, "{} does not stop", self.name);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Goes on where [`freeze`](Self::freeze) stopped.
    pub fn thaw(&self) {
        signal("CONT", &family(self.pid()));
    }

    pub fn pid(&self) -> u32 {
        self.running.as_ref().expect("it runs").pid
    }

    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn address(&self) -> SocketAddr {
        (std::net::Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The folder that the server's data is in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What the server has printed last.
    pub fn log_end(&self) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&log).into_owned();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    fn log(&self) -> PathBuf {
        self.folder()
            .join(format!("{}-{}.log", self.name, self.port))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            signal("KILL", &family(running.pid));
            drop(running.stdin);
            let _ = running.keeper.wait();
        }
    }
}

/// Runs a command to its end: a set-up step. Panics with its output when it fails.
pub fn run<A: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = A>) -> String {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    assert!(
        output.status.success(),
        "{program} failed:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A server's program: `$variable`, else what `tests/run` installed, else one from `PATH` or
/// `places`.
pub fn program(variable: &str, name: &str, places: &[&str]) -> String {
    if let Ok(path) = std::env::var(variable) {
        return path;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let tools = std::env::var_os("SESSION_LAYER_TOOLS").map(|tools| Path::new(&tools).join("bin"));
    tools
        .into_iter()
        .chain(std::env::split_paths(&path))
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .chain(places.iter().map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed: tests/run does that"))
        .into_os_string()
        .into_string()
        .unwrap()
}

/// Whether the tests run as root, which some servers refuse to.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").unwrap().uid() == 0
}

fn is_running(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    !status.is_empty() && !status.contains("State:\tZ")
}

/// Whether every thread of a process has stopped, or ended.
fn is_frozen(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return true;
    };
    threads.flatten().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit(')').next().unwrap_or_default();
        state.is_empty() || state.trim_start().starts_with(['T', 'Z', 'X'])
    })
}

/// A process and all that descend from it.
fn family(pid: u32) -> Vec<u32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(child) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name of the program, in parentheses, may contain anything.
        let parent = stat
            .rsplit(')')
            .next()
            .and_then(|s| s.split_whitespace().nth(1));
        if let Some(Ok(parent)) = parent.map(str::parse::<u32>) {
            parents.push((child, parent));
        }
    }
    let mut family = vec![pid];
    let mut at = 0;
    while at < family.len() {
        let parent = family[at];
        family.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(c, _)| c));
        at += 1;
    }
    family
}

fn signal(name: &str, pids: &[u32]) {
    let pids = pids.iter().map(u32::to_string);
    let _ = Command::new("sh")
        .args(["-c", "kill -\"$0\" \"$@\" 2>/dev/null", name])
        .args(pids)
        .status();
}

/// Writes a file below a server's folder, for all to read.
pub fn write(path: &Path, text: &str) {
    File::create(path)
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
}
