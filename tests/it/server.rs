//! A web server in this process that answers as a test wants, on a port of its own.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// Ends with the test.
pub struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Asked>>>,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    /// With its query.
    pub path: String,
    /// By lower-cased name.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Asked {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

#[derive(Clone, Debug, Default)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// How much of the body is sent before the connection is closed.
    cut_at: Option<usize>,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into(), ..Self::default() }
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub fn cut_at(self, bytes: usize) -> Self {
        Self { cut_at: Some(bytes), ..self }
    }
}

impl Server {
    /// `answer` also gets how many requests for the same method and path came before.
    pub fn start(answer: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self::cutting(usize::MAX, answer)
    }

    /// The same, but of the first body that is longer than `bytes` no more is read, and no answer given.
    pub fn cutting(bytes: usize, answer: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static) -> Self {
        let cut = Arc::new(Mutex::new(Some(bytes)));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self { address: listener.local_addr().unwrap(), seen: Arc::default() };
        let (seen, answer) = (Arc::clone(&server.seen), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, answer, cut) = (Arc::clone(&seen), Arc::clone(&answer), Arc::clone(&cut));
                std::thread::spawn(move || {
                    let stream = stream.unwrap();
                    let Some((asked, is_cut)) = read(&stream, &cut) else { return };
                    let mut seen = seen.lock().unwrap();
                    let is_same = |other: &&Asked| other.method == asked.method && other.path == asked.path;
                    let before = seen.iter().filter(is_same).count();
                    seen.push(asked.clone());
                    drop(seen);
                    if is_cut {
                        return;
                    }
                    write(stream, &asked, &answer(&asked, before));
                });
            }
        });
        server
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub fn seen(&self) -> Vec<Asked> {
        self.seen.lock().unwrap().clone()
    }

    /// What was asked for at this path, whatever its query.
    pub fn seen_at(&self, method: &str, path: &str) -> Vec<Asked> {
        let is_it = |asked: &Asked| asked.method == method && asked.path.split('?').next() == Some(path);
        self.seen().into_iter().filter(is_it).collect()
    }
}

/// A request, and whether it was cut.
fn read(stream: &TcpStream, cut: &Mutex<Option<usize>>) -> Option<(Asked, bool)> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let cut = cut.lock().unwrap().take_if(|bytes| *bytes < length);
    let mut body = vec![0; cut.unwrap_or(length)];
    reader.read_exact(&mut body).ok()?;
    Some((Asked { method, path, headers, body }, cut.is_some()))
}

fn write(mut stream: TcpStream, asked: &Asked, reply: &Reply) {
    let mut head = format!("HTTP/1.1 {} x\r\nConnection: close\r\n", reply.status);
    if reply.status != 304 {
        head.push_str(&format!("Content-Length: {}\r\n", reply.body.len()));
    }
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let body = if asked.method == "HEAD" { &[][..] } else { &reply.body[..reply.cut_at.unwrap_or(reply.body.len())] };
    // A client may have heard enough.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}
