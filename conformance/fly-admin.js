// Drives a real server with npm's fly-admin, a client that was written for Fly.io's Machines API.
//   PERCH_URL, PERCH_TOKEN: the server; PERCH_APP, PERCH_IMAGE: an app and an image it has
"use strict";
const assert = require("node:assert/strict");
// Its `createClient` takes no address.
const { default: Client } = require("fly-admin/dist/client");

const url = process.env.PERCH_URL;
const app = process.env.PERCH_APP;
const image = process.env.PERCH_IMAGE;
const client = new Client(process.env.PERCH_TOKEN, { apiUrl: url, graphqlUrl: url });

let served;

async function part(name, path, run) {
  try {
    assert.ok(!path || served.has(path), `${path} is not served`);
    await run();
    console.log(`passed: fly-admin ${name}`);
  } catch (error) {
    error.message = `fly-admin ${name}: ${error.message}`;
    throw error;
  }
}

async function refused(promise, status, words) {
  await assert.rejects(promise, (error) => {
    assert.ok(error.message.startsWith(`${status}: `), error.message);
    assert.ok(error.message.includes(words), error.message);
    return true;
  });
}

async function main() {
  const document = await (await fetch(`${url}/v1/openapi.json`)).json();
  served = new Set(
    Object.entries(document.paths).flatMap(([path, methods]) =>
      Object.keys(methods).map((method) => `${method.toUpperCase()} ${path}`),
    ),
  );
  const machine = "/v1/apps/{app}/machines/{machine}";
  const volume = "/v1/apps/{app}/volumes/{volume}";

  await part("apps", null, async () => {
    await client.App.createApp({ app_name: "fly-admin", org_slug: "personal" });
    const apps = await client.App.listApps("personal");
    assert.ok(apps.apps.some((it) => it.name === "fly-admin"));
    assert.equal(apps.total_apps, apps.apps.length);
    const one = await client.App.getApp("fly-admin");
    assert.equal(one.organization.slug, "personal");
    await client.App.deleteApp("fly-admin");
    await refused(client.App.getApp("fly-admin"), 404, "Could not find App");
    const again = client.App.createApp({ app_name: app, org_slug: "personal" });
    await refused(again, 422, "Name has already been taken");
  });

  const config = {
    image,
    guest: { cpu_kind: "shared", cpus: 1, memory_mb: 256 },
    env: { COLOUR: "green" },
    restart: { policy: "no" },
  };
  const made = await client.Machine.createMachine({ app_name: app, config });
  const of = { app_name: app, machine_id: made.id };

  await part("machines", null, async () => {
    assert.match(made.id, /^[0-9a-f]{14}$/);
    assert.equal(made.config.env.COLOUR, "green");
    await client.Machine.waitMachine({ ...of, instance_id: made.instance_id, state: "started" });
    const one = await client.Machine.getMachine(of);
    assert.equal(one.state, "started");
    assert.ok(one.events.some((event) => event.type === "start"));
    const all = await client.Machine.listMachines(app);
    assert.ok(all.some((it) => it.id === made.id));
    const events = await client.Machine.listEvents(of);
    assert.ok(events.length >= 2 && events[0].timestamp >= events.at(-1).timestamp);
    // The program does not catch it, and its policy leaves it stopped.
    assert.equal((await client.Machine.signalMachine({ ...of, signal: "SIGUSR1" })).ok, true);
    await client.Machine.waitMachine({ ...of, instance_id: made.instance_id, state: "stopped" });
    await client.Machine.startMachine(of);
    await client.Machine.waitMachine({ ...of, instance_id: made.instance_id, state: "started" });
  });

  await part("cordon", `POST ${machine}/cordon`, async () => {
    await client.Machine.cordonMachine(of);
    assert.equal((await client.Machine.getMachine(of)).cordoned, true);
    await client.Machine.uncordonMachine(of);
    assert.equal((await client.Machine.getMachine(of)).cordoned, false);
  });

  await part("processes", `GET ${machine}/ps`, async () => {
    const processes = await client.Machine.listProcesses(of);
    assert.ok(processes.length >= 1 && processes[0].pid > 0);
  });

  await part("leases", `POST ${machine}/lease`, async () => {
    await refused(client.Machine.getLease(of), 404, "lease not found");
    const lease = await client.Machine.acquireLease({ ...of, ttl: 3, description: "conformance" });
    assert.equal(lease.status, "success");
    const seen = await client.Machine.getLease(of);
    assert.equal(seen.data.nonce, lease.data.nonce);
    await refused(client.Machine.stopMachine(of), 409, "lease currently held by");
    // The client cannot send the nonce: the lease has to end by itself.
    const deadline = Date.now() + 20_000;
    for (;;) {
      const gone = await client.Machine.getLease(of).then(() => false, () => true);
      if (gone) break;
      assert.ok(Date.now() < deadline, "the lease ends");
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  });

  await part("updates, stop and start", null, async () => {
    const changed = { ...config, env: { COLOUR: "blue" } };
    const updated = await client.Machine.updateMachine({ ...of, config: changed });
    assert.notEqual(updated.instance_id, made.instance_id);
    const instance_id = updated.instance_id;
    await client.Machine.waitMachine({ ...of, instance_id, state: "started" });
    await client.Machine.restartMachine({ ...of, timeout: "5s" });
    await client.Machine.waitMachine({ ...of, instance_id, state: "started" });
    await client.Machine.stopMachine({ ...of, signal: "SIGTERM", timeout: "5s" });
    await client.Machine.waitMachine({ ...of, instance_id, state: "stopped" });
    await client.Machine.startMachine(of);
    await client.Machine.waitMachine({ ...of, instance_id, state: "started" });
    assert.equal((await client.Machine.getMachine(of)).config.env.COLOUR, "blue");
  });

  await part("versions", `GET ${machine}/versions`, async () => {
    const versions = await client.Machine.listVersions(of);
    assert.ok(versions.length >= 2 && versions.every((it) => it.user_config.image === image));
  });

  await part("deletion", null, async () => {
    const deletion = await client.Machine.deleteMachine({ ...of, force: true });
    assert.equal(deletion.ok, true);
    const left = await client.Machine.listMachines(app);
    assert.ok(!left.some((it) => it.id === made.id && it.state !== "destroying"));
  });

  await part("volumes", `GET ${volume}`, async () => {
    const data = { app_name: app, name: "data", size_gb: 1, region: made.region };
    const created = await client.Volume.createVolume(data);
    const it = { app_name: app, volume_id: created.id };
    assert.match(created.id, /^vol_[a-z0-9]+$/);
    assert.equal((await client.Volume.getVolume(it)).size_gb, 1);
    assert.ok((await client.Volume.listVolumes(app)).some((one) => one.id === created.id));
    const extended = await client.Volume.extendVolume({ ...it, size_gb: 2 });
    assert.equal(extended.volume.size_gb, 2);
    assert.ok(Array.isArray(await client.Volume.listSnapshots(it)));
    assert.equal((await client.Volume.deleteVolume(it)).id, created.id);
  });
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
