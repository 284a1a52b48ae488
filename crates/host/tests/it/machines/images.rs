//! Images that no machine names any more: kept, unmounted, deleted; real ones of a real store.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use perch_host::effects::Effects;
use perch_host::{CachePolicy, Host, Mounts, StoredImages};
use perch_oci::{Client, ClientConfig, ImageStore, StoreConfig};
use perch_types::host::{Command, CreateMachine};
use perch_types::image::Digest;
use perch_types::{Code, InstanceId, MachineId};
use serde_json::json;

use super::server::{Server, exec, machine, tell, wait};

const SLEEP: &str = "exec sleep 1000";

fn digest(byte: u8) -> Digest {
    Digest::from_sha256(&[byte; 32])
}

fn reference(byte: u8) -> String {
    format!("registry.internal/web@{}", digest(byte).as_str())
}

fn image_folder(server: &Server, byte: u8) -> PathBuf {
    server.folder.join("data/images/images").join(digest(byte).hex())
}

/// Puts an image into the store as a pull does: whole, by a rename.
fn store_image(server: &Server, byte: u8) {
    let staged = server.folder.join(format!("staged-{byte}"));
    fs::create_dir_all(&staged).unwrap();
    let config = perch_types::image::ImageConfig {
        cmd: vec!["sh".to_owned()],
        ..perch_types::image::ImageConfig::default()
    };
    let record = json!({"digest": digest(byte), "config": config, "reference": reference(byte)});
    fs::write(staged.join("config.json"), serde_json::to_vec(&record).unwrap()).unwrap();
    fs::copy(server.folder.join("busybox.erofs"), staged.join(EROFS)).unwrap();
    fs::rename(staged, image_folder(server, byte)).unwrap();
}

/// What the store calls the file with an image's tree.
const EROFS: &str = "rootfs.erofs";

async fn effects(server: &Server) -> Effects {
    let client = ClientConfig::default();
    let store = ImageStore::open(StoreConfig {
        root: server.folder.join("data/images"),
        client: client.clone(),
        limits: perch_oci::Limits::default(),
        privilege: perch_oci::Privilege::InProcess,
    })
    .await
    .unwrap();
    let mounts = Mounts::open(&server.folder.join("run/images")).unwrap();
    let images = StoredImages::new(store, Client::new(client).unwrap(), mounts);
    Effects { images: Arc::new(images), ..server.effects().await }
}

async fn start(server: &Server, cache: CachePolicy) -> Host {
    let mut config = server.config();
    config.limits.cache = cache;
    let effects = effects(server).await;
    Host::start_with(config, effects, Some(server.store()), Vec::new()).await.unwrap()
}

fn of_image(number: u64, byte: u8) -> CreateMachine {
    let mut request = machine(number, SLEEP);
    request.config.image = reference(byte);
    request
}

fn is_mounted(server: &Server, byte: u8) -> bool {
    let point = server.folder.join("run/images").join(digest(byte).hex());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.contains(point.to_str().unwrap())
}

async fn destroy(host: &Host, id: &MachineId) {
    tell(host, id, Command::Destroy { force: true }).await;
    wait(host, id, "destroyed").await;
}

#[test]
fn images_that_no_machine_names_go_the_longest_unused_first() {
    let test = "images_that_no_machine_names_go_the_longest_unused_first";
    Server::run(test, |server| async move {
        let host = start(&server, CachePolicy::default()).await;
        for byte in 1..=4 {
            store_image(&server, byte);
        }
        let size = fs::metadata(image_folder(&server, 1).join(EROFS)).unwrap().len();
        let named = of_image(1, 3);
        let id = named.id.clone();
        host.create(named).await.unwrap();
        wait(&host, &id, "started").await;

        let tidied = host.tidy(CachePolicy::default()).await.unwrap();
        assert_eq!(tidied.images, 0, "under the cap all of it stays");
        let young = CachePolicy { bytes_max: 0, kept_ms: 3_600_000 };
        assert_eq!(host.tidy(young).await.unwrap().images, 0, "the young stay");
        let room_for_two = CachePolicy { bytes_max: 2 * size, kept_ms: 0 };
        let tidied = host.tidy(room_for_two).await.unwrap();
        assert_eq!((tidied.images, tidied.bytes), (1, size));
        assert!(!image_folder(&server, 1).exists(), "of one time the first by digest goes");
        assert!(host.tidy(CachePolicy::EMPTY).await.unwrap().images == 2);
        assert!(image_folder(&server, 3).exists(), "a machine names it");
        assert_eq!(exec(&host, &id, "echo here").await.unwrap(), "here\n");

        // Stopped it is named as well, and starts again from what is on the disk.
        tell(&host, &id, Command::Stop { signal: None, timeout: None }).await;
        wait(&host, &id, "stopped").await;
        assert_eq!(host.tidy(CachePolicy::EMPTY).await.unwrap().images, 0);
        tell(&host, &id, Command::Start).await;
        wait(&host, &id, "started").await;

        // Destroyed it names nothing: tree and file go.
        destroy(&host, &id).await;
        assert_eq!(host.tidy(CachePolicy::EMPTY).await.unwrap().images, 1);
        assert!(!is_mounted(&server, 3) && !image_folder(&server, 3).exists());
        let refused = host.create(of_image(2, 3)).await.unwrap_err();
        assert_ne!(refused.code, Code::Internal, "{refused}");
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn an_agent_tidies_by_itself_once_a_machine_is_gone() {
    Server::run("an_agent_tidies_by_itself_once_a_machine_is_gone", |server| async move {
        let host = start(&server, CachePolicy::EMPTY).await;
        store_image(&server, 1);
        let request = of_image(1, 1);
        let id = request.id.clone();
        host.create(request).await.unwrap();
        wait(&host, &id, "started").await;
        destroy(&host, &id).await;
        let deadline = std::time::Instant::now() + super::server::PATIENCE;
        while image_folder(&server, 1).exists() {
            assert!(std::time::Instant::now() < deadline);
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn an_update_that_is_under_way_names_both_images() {
    Server::run("an_update_that_is_under_way_names_both_images", |server| async move {
        let host = start(&server, CachePolicy::default()).await;
        store_image(&server, 1);
        store_image(&server, 2);
        let mut request = of_image(1, 1);
        // It takes its time to stop, and so the update does.
        let script = "trap 'sleep 1; exit 0' TERM INT; echo up; while :; do sleep 0.05; done";
        request.config.init.exec = ["sh", "-c", script].map(str::to_owned).to_vec();
        let id = request.id.clone();
        host.create(request.clone()).await.unwrap();
        server.wait_for_output(&id, "up").await;
        let mut config = request.config.clone();
        config.image = reference(2);
        let update = Command::Update {
            instance: InstanceId::from_parts(1_800_000_000_000, 1),
            epoch: 2,
            config: Box::new(config),
            config_digest: "2".to_owned(),
            skip_launch: false,
            cordoned: false,
            secrets: perch_types::host::SecretsWanted::default(),
        };
        tell(&host, &id, update).await;
        // Only once the new one runs is the old one's image nobody's.
        while host.tidy(CachePolicy::EMPTY).await.unwrap().images == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert!(image_folder(&server, 2).exists() && !image_folder(&server, 1).exists());
        assert_eq!(host.get(&id).unwrap().state, perch_types::MachineState::Started);
        assert_eq!(exec(&host, &id, "echo here").await.unwrap(), "here\n");
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn a_machine_that_was_accepted_has_its_image_however_much_is_tidied() {
    let test = "a_machine_that_was_accepted_has_its_image_however_much_is_tidied";
    Server::run(test, |server| async move {
        let host = start(&server, CachePolicy::EMPTY).await;
        let ended = Arc::new(AtomicBool::new(false));
        let (tidying, stop) = (host.clone(), Arc::clone(&ended));
        let tidier = tokio::spawn(async move {
            let mut deleted = 0;
            while !stop.load(Ordering::Acquire) {
                deleted += tidying.tidy(CachePolicy::EMPTY).await.unwrap().images;
                tokio::task::yield_now().await;
            }
            deleted
        });
        let mut accepted = 0;
        for number in 1..=40 {
            if !image_folder(&server, 1).exists() {
                store_image(&server, 1);
            }
            let request = of_image(number, 1);
            let id = request.id.clone();
            // It may have been deleted before it was asked for; once accepted it is there. No
            // registry would give it back.
            if host.create(request).await.is_ok() {
                accepted += 1;
                wait(&host, &id, "started").await;
                destroy(&host, &id).await;
            }
        }
        ended.store(true, Ordering::Release);
        let deleted = tidier.await.unwrap();
        assert!(accepted > 0 && deleted > 0, "{accepted} accepted, {deleted} deleted");
        host.remove_everything().await.unwrap();
    });
}

#[test]
fn a_deletion_that_was_cut_off_is_finished_and_touches_nothing_else() {
    let test = "a_deletion_that_was_cut_off_is_finished_and_touches_nothing_else";
    Server::run(test, |server| async move {
        let host = start(&server, CachePolicy::default()).await;
        for byte in 1..=3 {
            store_image(&server, byte);
        }
        let named = of_image(1, 1);
        let id = named.id.clone();
        host.create(named).await.unwrap();
        wait(&host, &id, "started").await;
        host.tidy(CachePolicy::default()).await.unwrap();
        host.shutdown().await;
        drop(host);
        // As kill -9 leaves it: out of sight and half deleted, its use still noted.
        let half = server.folder.join("data/images/tmp/999-0");
        fs::rename(image_folder(&server, 2), &half).unwrap();
        fs::remove_file(half.join("config.json")).unwrap();

        let host = start(&server, CachePolicy::default()).await;
        assert!(!half.exists());
        // Ready as soon as the agent has found it.
        wait(&host, &id, "ready").await;
        assert_eq!(exec(&host, &id, "echo here").await.unwrap(), "here\n");
        assert_eq!(host.tidy(CachePolicy::EMPTY).await.unwrap().images, 1, "the third");
        assert!(image_folder(&server, 1).exists());
        host.remove_everything().await.unwrap();
    });
}
