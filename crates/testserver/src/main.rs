//! `perch-testserver`: the program that tests and measurements run inside machines.
//!
//! Never part of a server. It is static and needs nothing but itself, so an image of it is one
//! file. It answers HTTP/1.1, or sends back what it gets, as its arguments say, or ends as they say.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::exit,
    reason = "tests read what it prints and how it ends"
)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::thread;

const USAGE: &str = "usage: perch-testserver [--print LINE]... [--stderr LINE]... [--lines N] \
[--eat-mb N] [--exit CODE] [--api SOCKET,METHOD,PATH[,BODY]]... [--watch-api SOCKET,PATH] \
[--write FILE[,sync]] [--listen ADDRESS:PORT]... [--echo ADDRESS:PORT]... \
[--echo-udp ADDRESS:PORT]...";
/// What it says before it sends back what comes.
const SWITCHING: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
/// The longest head or body that it reads.
const BYTES_MAX: usize = 1 << 20;
/// One of the pieces of a file that it writes without an end, and how many there are before it
/// begins anew.
static PIECE: [u8; 64 << 10] = [7; 64 << 10];
const PIECES: u64 = 1024;

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(mut arguments: impl Iterator<Item = String>) -> Result<u8, String> {
    let (mut listeners, mut echoes) = (Vec::new(), Vec::new());
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or(USAGE)?;
        let number = || value.parse::<u64>().map_err(|error| format!("{value}: {error}"));
        match argument.as_str() {
            "--print" => println!("{value}"),
            "--stderr" => eprintln!("{value}"),
            "--lines" => (0..number()?).for_each(|line| println!("line {line}")),
            "--eat-mb" => eat(number()?),
            "--exit" => return u8::try_from(number()?).map_err(|error| error.to_string()),
            "--api" => println!("{}", api(&value)?),
            "--watch-api" => {
                thread::spawn(move || watch_api(&value));
            }
            "--write" => write(value)?,
            "--listen" => {
                let listener =
                    TcpListener::bind(&value).map_err(|error| format!("{value}: {error}"))?;
                println!("listening on {value}");
                listeners.push(listener);
            }
            "--echo" => {
                let listener =
                    TcpListener::bind(&value).map_err(|error| format!("{value}: {error}"))?;
                println!("echoing on {value}");
                echoes.push(thread::spawn(move || {
                    for stream in listener.incoming().flatten() {
                        thread::spawn(move || echo(stream));
                    }
                }));
            }
            "--echo-udp" => {
                let socket =
                    UdpSocket::bind(&value).map_err(|error| format!("{value}: {error}"))?;
                println!("echoing datagrams on {value}");
                echoes.push(thread::spawn(move || echo_datagrams(&socket)));
            }
            _ => return Err(USAGE.to_owned()),
        }
    }
    io::stdout().flush().ok();
    let threads: Vec<_> = listeners
        .into_iter()
        .map(|listener| {
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    thread::spawn(move || serve(stream));
                }
            })
        })
        .collect();
    for thread in threads.into_iter().chain(echoes) {
        thread.join().ok();
    }
    Ok(0)
}

/// Sends a request to a Unix socket; returns the status and the body of the answer.
fn api(request: &str) -> Result<String, String> {
    let mut parts = request.splitn(4, ',');
    let (Some(socket), Some(method), Some(path)) = (parts.next(), parts.next(), parts.next())
    else {
        return Err(USAGE.to_owned());
    };
    let body = parts.next().unwrap_or_default();
    let answer = || -> io::Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Authorization: Bearer made-up\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        // In one piece, as clients do.
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = answer().map_err(|error| format!("{socket}: {error}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split_whitespace().nth(1).unwrap_or("none");
    Ok(format!("{status} {body}"))
}

/// Asks a Unix socket again and again, and prints each status that is not the one before.
fn watch_api(request: &str) {
    let (socket, path) = request.split_once(',').unwrap_or((request, "/"));
    let mut before = String::new();
    loop {
        let status = match api(&format!("{socket},GET,{path}")) {
            Ok(answer) => answer.split(' ').next().unwrap_or_default().to_owned(),
            Err(_) => "none".to_owned(),
        };
        if status != before {
            println!("api {status}");
            before = status;
        }
        thread::park_timeout(std::time::Duration::from_millis(20));
    }
}

/// Writes to a file until it ends, each piece onto the disk if it is told so.
fn write(value: String) -> Result<(), String> {
    let (path, how) = value.split_once(',').unwrap_or((&value, ""));
    let is_synced = how == "sync";
    let file = File::create(path).map_err(|error| format!("{path}: {error}"))?;
    thread::spawn(move || {
        for piece in (0..PIECES).cycle() {
            let offset = piece * u64::try_from(PIECE.len()).unwrap_or(0);
            let written = file.write_all_at(&PIECE, offset);
            if let Err(error) =
                written.and_then(|()| if is_synced { file.sync_data() } else { Ok(()) })
            {
                eprintln!("error: {value}: {error}");
                return;
            }
        }
    });
    Ok(())
}

/// Takes memory and writes to every page of it.
fn eat(mb: u64) {
    let bytes = usize::try_from(mb << 20).unwrap_or(usize::MAX);
    let mut eaten = vec![0_u8; bytes];
    for page in eaten.chunks_mut(4096) {
        page[0] = 1;
    }
    println!("ate {mb} MB");
    std::hint::black_box(&eaten);
}

/// Sends back what comes until that ends.
fn echo(mut stream: TcpStream) {
    let Ok(mut input) = stream.try_clone() else {
        return;
    };
    io::copy(&mut input, &mut stream).ok();
}

/// Sends every datagram back.
fn echo_datagrams(socket: &UdpSocket) {
    let mut bytes = [0; 2048];
    while let Ok((count, client)) = socket.recv_from(&mut bytes) {
        socket.send_to(bytes.get(..count).unwrap_or_default(), client).ok();
    }
}

/// Answers requests on one connection until it ends.
fn serve(stream: TcpStream) {
    let Ok(mut output) = stream.try_clone() else {
        return;
    };
    stream.set_nodelay(true).ok();
    let mut input = BufReader::new(stream);
    while let Ok(Some(request)) = read(&mut input) {
        if request.path == "/switch" {
            // Whatever is spoken from here on, it is sent back.
            if output.write_all(SWITCHING).is_ok() {
                io::copy(&mut input, &mut output).ok();
            }
            return;
        }
        if answer(&mut output, &request).is_err() {
            return;
        }
    }
}

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    head: String,
    body: Vec<u8>,
}

fn read(input: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let mut head = String::new();
    loop {
        let before = head.len();
        if input.read_line(&mut head)? == 0 || head.len() > BYTES_MAX {
            return Ok(None);
        }
        if head.get(before..) == Some("\r\n") {
            break;
        }
    }
    let field = |name: &str| {
        head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let length = field("content-length").and_then(|value| value.parse().ok()).unwrap_or(0_usize);
    let mut body = vec![0; length.min(BYTES_MAX)];
    input.read_exact(&mut body)?;
    if field("transfer-encoding").is_some() {
        read_chunks(input, &mut body)?;
    }
    let mut words = head.split_whitespace();
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    Ok(Some(Request { method, path: path.to_owned(), query, head: head.clone(), body }))
}

fn read_chunks(input: &mut BufReader<TcpStream>, body: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let mut line = String::new();
        input.read_line(&mut line)?;
        let size = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
        let mut chunk = vec![0; size.min(BYTES_MAX)];
        input.read_exact(&mut chunk)?;
        input.read_line(&mut line)?;
        if size == 0 {
            return Ok(());
        }
        body.extend_from_slice(&chunk);
    }
}

fn answer(output: &mut TcpStream, request: &Request) -> io::Result<()> {
    let number = |key: &str| request.query.get(key).and_then(|value| value.parse::<u64>().ok());
    let (status, body) = match request.path.as_str() {
        "/" => ("200 OK", b"hello\n".to_vec()),
        "/env" => {
            let variables: String =
                std::env::vars().map(|(name, value)| format!("{name}={value}\n")).collect();
            ("200 OK", variables.into_bytes())
        }
        "/head" => ("200 OK", request.head.clone().into_bytes()),
        "/echo" => ("200 OK", request.body.clone()),
        "/method" => ("200 OK", request.method.clone().into_bytes()),
        "/bytes" => {
            let count = usize::try_from(number("n").unwrap_or(1024)).unwrap_or(0);
            ("200 OK", vec![b'x'; count.min(BYTES_MAX)])
        }
        "/sleep" => {
            thread::park_timeout(std::time::Duration::from_millis(number("ms").unwrap_or(0)));
            ("200 OK", b"slept\n".to_vec())
        }
        "/eat" => {
            eat(number("mb").unwrap_or(0));
            ("200 OK", b"ate\n".to_vec())
        }
        "/print" => {
            println!("{}", request.query.get("line").map_or("", String::as_str));
            ("200 OK", b"printed\n".to_vec())
        }
        "/exit" => {
            let code = number("code").unwrap_or(0);
            println!("leaving with {code}");
            std::process::exit(i32::try_from(code).unwrap_or(1));
        }
        _ => ("404 Not Found", b"not found\n".to_vec()),
    };
    // In one piece: a second packet would be measured in whatever reads it.
    let mut whole = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Type: text/plain\r\n\r\n",
        body.len()
    )
    .into_bytes();
    whole.extend_from_slice(&body);
    output.write_all(&whole)
}
