//! Arbitrary requests to a running `runtime serve`, the program RUNTIME with a tiny model: each gets an answer, the server never
//! fails (500) and goes on. Inputs are those of the target `requests`; one whose first line ends with CR LF is sent as it is.

#![no_main]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use fuzz::Scratch;
use libfuzzer_sys::fuzz_target;
use models::spec::Class;
use models::{ModelSpec, Provenance, parameters};
use ndarray::{ArrayD, IxDyn};

/// Time for an answer. libFuzzer's time-out stops this program, but would not name the server.
const ANSWER: Duration = Duration::from_secs(4);

/// Maximum resident memory of the server in kB; it takes a tenth with one image of the maximum size.
const MAX_MEMORY: u64 = 1 << 20;

static SERVER: LazyLock<Server> = LazyLock::new(Server::start);

fuzz_target!(|bytes: &[u8]| {
    let is_raw = bytes.split(|byte| *byte == b'\n').next().is_some_and(|line| line.ends_with(b"\r"));
    let answer = if is_raw { SERVER.send(bytes, true) } else { SERVER.send(&request(bytes), false) };
    let answer = answer.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(&answer);
    let status = answer.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok());
    match status {
        // Half a request gets none, nor does a client that has left, as one does that sends nothing more.
        None => assert!(is_raw && answer.is_empty(), "{answer:?}"),
        Some(status) => assert!((200..=599).contains(&status) && status != 500, "{answer}"),
    }
    SERVER.check();
});

/// The request with CR LF, and with the headers that say where it ends.
fn request(bytes: &[u8]) -> Vec<u8> {
    let end = bytes.windows(2).position(|pair| pair == b"\n\n").unwrap_or(bytes.len());
    let body = bytes.get(end + 2..).unwrap_or_default();
    let mut lines = bytes[..end].split(|byte| *byte == b'\n');
    let mut request = lines.next().unwrap_or_default().to_vec();
    request.extend_from_slice(b" HTTP/1.1\r\n");
    let says_length = |line: &&[u8]| {
        let line = line.to_ascii_lowercase();
        [&b"content-length"[..], b"transfer-encoding", b"connection", b"upgrade"]
            .iter()
            .any(|name| line.starts_with(name))
    };
    for line in lines.filter(|line| !line.is_empty() && !says_length(line)) {
        request.extend_from_slice(line);
        request.extend_from_slice(b"\r\n");
    }
    let length = format!("host: server\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    request.extend_from_slice(length.as_bytes());
    request.extend_from_slice(body);
    request
}

struct Server {
    address: SocketAddr,
    process: Child,
    requests: AtomicU64,
    _folder: Scratch,
}

impl Server {
    fn start() -> Self {
        let folder = Scratch::new();
        let model = folder.file("m.onnx", &tiny_model());
        let program = std::env::var_os("RUNTIME").expect("RUNTIME is the path of the program `runtime`");
        // libFuzzer ends this process without a word to the server.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program).args(["serve", "--listen", "127.0.0.1:0"]);
        command.args(["--max-pixels", "1000000", "--max-bytes", "1000000", "--warm-up", "32x32", "--model"]).arg(model);
        let mut process = command.stderr(Stdio::piped()).spawn().expect("setpriv of util-linux starts RUNTIME");
        let mut messages = BufReader::new(process.stderr.take().expect("it is piped")).lines().map_while(Result::ok);
        let address = messages.find_map(|line| line.split("http://").nth(1).map(str::to_owned));
        let address = address.expect("the server listens").parse().expect("an address and a port");
        // A pipe that nobody reads would stop the server.
        std::thread::spawn(move || messages.for_each(drop));
        let server = Self { address, process, requests: AtomicU64::new(0), _folder: folder };
        let ready = b"GET /v2/health/ready HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n";
        while !server.send(ready, false).starts_with("HTTP/1.1 200") {
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// Sends these bytes, and then nothing more if `closes`; returns the answer.
    fn send(&self, bytes: &[u8], closes: bool) -> String {
        let mut stream = TcpStream::connect(self.address).expect("the server accepts connections");
        stream.set_read_timeout(Some(ANSWER)).expect("it is not zero");
        // The server may answer and close before it has read all.
        let _ = stream.write_all(bytes);
        if closes {
            let _ = stream.shutdown(Shutdown::Write);
        }
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("no answer within {ANSWER:?}"),
            // What came before a reset counts.
            _ => String::from_utf8_lossy(&answer).into_owned(),
        }
    }

    /// Checks the server's memory, once in a thousand requests.
    fn check(&self) {
        if !self.requests.fetch_add(1, Relaxed).is_multiple_of(1000) {
            return;
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("the server runs");
        let memory =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
        assert!(memory.is_some_and(|memory: u64| memory < MAX_MEMORY), "{memory:?} kB");
    }
}

/// An ONNX file with made-up weights, which takes a few milliseconds for an image.
fn tiny_model() -> Vec<u8> {
    let mut spec = ModelSpec::preset("resnet50").expect("it exists");
    spec.classes = ["cat", "dog"].into_iter().zip(1..).map(|(name, id)| Class { id, name: name.to_owned() }).collect();
    (spec.preprocessing.shorter_side, spec.preprocessing.longer_side) = (32, 32);
    (spec.backbone.width_per_group, spec.pyramid.width, spec.heads.width, spec.heads.depth) = (4, 8, 8, 1);
    let tensors = parameters(&spec).expect("the spec is valid").into_iter().map(|parameter| {
        let is_variance = parameter.name.ends_with("running_var");
        let value = |index: usize| if is_variance { 1.0 } else { (index % 13) as f32 * 0.01 - 0.04 };
        let values = (0..parameter.shape.iter().product()).map(value).collect();
        let tensor = ArrayD::from_shape_vec(IxDyn(&parameter.shape), values).expect("as many as the shape says");
        (parameter.name, tensor)
    });
    exporter::to_onnx(&spec, tensors.collect(), &Provenance::default()).expect("the tensors are the spec's")
}
