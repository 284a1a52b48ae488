//! Measures a store on the disk of a folder, straight and over its socket: `measure [FOLDER]`.
//!
//! Never part of the product.
#![forbid(unsafe_code)]

use std::{error::Error, path::PathBuf, sync::Arc, time::Instant};

use futures_util::StreamExt as _;
use perch_store::{Expected, RemoteStore, SqliteStore, Store, rpc};
use perch_types::{Timestamp, clock::Clock};

const WRITES: u32 = 2_000;
const WIDTH: u32 = 32;

#[derive(Debug)]
struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(0)
    }

    fn boot_ms(&self) -> u64 {
        0
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = folder.join(format!("perch-measure-{}", std::process::id()));
    std::fs::create_dir(&folder)?;
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(folder.join("s.db"), Arc::new(Still))?);
    measure("sqlite", Arc::clone(&store)).await?;
    let listener = tokio::net::UnixListener::bind(folder.join("s.sock"))?;
    let serving = tokio::spawn(async move { axum::serve(listener, rpc::router(store)).await });
    measure("remote", Arc::new(RemoteStore::new(folder.join("s.sock")))).await?;
    serving.abort();
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

#[expect(clippy::print_stdout, reason = "it is a tool for people")]
async fn measure(name: &str, store: Arc<dyn Store>) -> Result<(), Box<dyn Error>> {
    let value = bytes::Bytes::from(vec![b'x'; 1000]);
    let began = Instant::now();
    for n in 0..WRITES {
        store.put(&format!("serial/{n}"), value.clone(), Expected::Any).await?;
    }
    let serial = f64::from(WRITES) / began.elapsed().as_secs_f64();
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WIDTH {
        let (store, value) = (Arc::clone(&store), value.clone());
        tasks.spawn(async move {
            for n in 0..WRITES / 8 {
                let key = format!("wide/{writer}/{n}");
                store.put(&key, value.clone(), Expected::Any).await?;
            }
            Ok::<(), perch_store::Error>(())
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    let wide = f64::from(WIDTH * (WRITES / 8)) / began.elapsed().as_secs_f64();
    println!("{name}: puts/s serial {serial:.0}, {WIDTH}-wide {wide:.0}");

    let from = store.list("seen/").await?.revision.next();
    let mut watch = store.watch("seen/", from).await?;
    let (seen, mut arrivals) = tokio::sync::mpsc::channel(1);
    let watcher = tokio::spawn(async move {
        while let Some(Ok(_)) = watch.next().await {
            if seen.send(Instant::now()).await.is_err() {
                return;
            }
        }
    });
    let mut micros = Vec::new();
    for _ in 0..1000 {
        let began = Instant::now();
        store.put("seen/a", value.clone(), Expected::Any).await?;
        let arrived = arrivals.recv().await.ok_or("the watch ended")?;
        micros.push(arrived.duration_since(began).as_micros());
    }
    watcher.abort();
    micros.sort_unstable();
    println!("{name}: put to watcher p50 {} us, p99 {} us", micros[500], micros[990]);
    Ok(())
}
