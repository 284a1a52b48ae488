<?php
// A page that shows where it runs. It counts its visits in a file of the machine itself, which
// lives as long as the machine does: put it on a volume to keep it longer.
declare(strict_types=1);

function count_visit(string $path): int
{
    $file = @fopen($path, 'c+');
    if ($file === false || !flock($file, LOCK_EX)) {
        return 0;
    }
    $count = (int) stream_get_contents($file) + 1;
    ftruncate($file, 0);
    rewind($file);
    fwrite($file, (string) $count);
    fclose($file);
    return $count;
}

function uptime(): string
{
    $seconds = (int) (explode(' ', (string) @file_get_contents('/proc/uptime'))[0] ?? 0);
    return sprintf('%dd %02dh %02dm', intdiv($seconds, 86400), intdiv($seconds, 3600) % 24, intdiv($seconds, 60) % 60);
}

$folder = getenv('DATA_DIR') ?: sys_get_temp_dir();
$visits = count_visit("$folder/visits.txt");

$facts = [
    'App' => getenv('FLY_APP_NAME') ?: 'not told',
    'Machine' => getenv('FLY_MACHINE_ID') ?: gethostname(),
    'Region' => getenv('FLY_REGION') ?: 'not told',
    'Private address' => getenv('FLY_PRIVATE_IP') ?: ($_SERVER['SERVER_ADDR'] ?? '?'),
    'You came by' => $_SERVER['HTTP_HOST'] ?? '?',
    'From' => $_SERVER['REMOTE_ADDR'] ?? '?',
    'PHP' => PHP_VERSION . ', ' . PHP_SAPI,
    'Memory of this request' => number_format(memory_get_peak_usage() / 1024) . ' KiB',
    'Server up for' => uptime(),
    'Time' => gmdate('Y-m-d H:i:s') . ' UTC',
];

if (($_GET['format'] ?? '') === 'json') {
    header('Content-Type: application/json');
    echo json_encode(['visits' => $visits] + $facts, JSON_PRETTY_PRINT | JSON_UNESCAPED_SLASHES), "\n";
    exit;
}
?>
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Guestbook on Perch</title>
<style>
  :root { color-scheme: light dark; --ink: #1d2b2a; --paper: #f6f3ec; --leaf: #2f7d6d; --line: #d9d2c3; }
  @media (prefers-color-scheme: dark) { :root { --ink: #e8e4da; --paper: #16201f; --leaf: #6fc2ae; --line: #2c3a38; } }
  body { margin: 0; min-height: 100vh; display: grid; place-items: center; background: var(--paper); color: var(--ink);
         font: 1.05rem/1.55 ui-sans-serif, system-ui, sans-serif; }
  main { width: min(40rem, 92vw); padding: 3rem 0; }
  h1 { font-size: 2.4rem; margin: 0 0 .3rem; letter-spacing: -.02em; }
  .count { font-size: 5.5rem; font-weight: 700; line-height: 1; color: var(--leaf); font-variant-numeric: tabular-nums; }
  dl { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.5rem; border-top: 1px solid var(--line); padding-top: 1.2rem; }
  dt { opacity: .65; } dd { margin: 0; font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
  a { color: var(--leaf); }
</style>
</head>
<body>
<main>
  <h1>Hello from a machine</h1>
  <p>You are visit number</p>
  <p class="count"><?= $visits ?></p>
  <dl>
<?php foreach ($facts as $name => $value): ?>
    <dt><?= htmlspecialchars($name) ?></dt><dd><?= htmlspecialchars((string) $value) ?></dd>
<?php endforeach ?>
  </dl>
  <p>The same <a href="?format=json">as JSON</a>.</p>
</main>
</body>
</html>
