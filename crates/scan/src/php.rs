//! PHP pages without a framework, served by Apache.
//!
//! Never PHP's built-in server: it is made for development and answers one request at a time.

use crate::files::Files;
use crate::plan::{Family, LaunchPlan, Source};

/// The port that Apache is told to listen on: above 1023, so that it needs no privilege.
const PORT: u16 = 8080;
/// The base image; the platform's registry has one of this name.
const BASE_IMAGE: &str = "php:8.2-apache-bookworm";
/// Where the base image's Apache looks for pages.
const ROOT: &str = "/var/www/html";

/// What is kept out of the build.
const DOCKERIGNORE: &str = "\
# Written by `perch launch`: what the build does not need.
.git
.gitignore
.dockerignore
Dockerfile
fly.toml
vendor
node_modules
.env
";

/// Plans PHP pages.
pub(crate) fn detect(files: &dyn Files) -> Option<LaunchPlan> {
    if files.has("artisan") {
        return None; // Laravel needs more than this family knows.
    }
    let public = ["public", "web", "htdocs"]
        .into_iter()
        .find(|folder| files.has(&format!("{folder}/index.php")));
    let (folder, page) = match public {
        Some(folder) => (folder, format!("{folder}/index.php")),
        None if files.has("index.php") => ("", "index.php".to_owned()),
        None => return None,
    };
    let composer = files.text("composer.json").map(|text| Composer::read(&text));
    let dockerfile = dockerfile(files, folder, composer.as_ref());
    let mut plan = LaunchPlan::new(Family::Php, Source::Generated(dockerfile));
    plan.decide("build", "a new Dockerfile", format!("{page} is there"));
    plan.decide("image", BASE_IMAGE, "PHP 8.2 and Apache on Debian 12");
    plan.command = Some("apache2-foreground".to_owned());
    plan.decide("command", "apache2-foreground", "what the image runs");
    let pages = if folder.is_empty() { ".".to_owned() } else { folder.to_owned() };
    plan.decide("pages", pages, format!("{page} is the first page"));
    if let Some(composer) = &composer {
        if composer.packages {
            plan.decide("packages", "composer install", "composer.json requires some");
        }
        if !composer.extensions.is_empty() {
            plan.warnings.push(format!(
                "composer.json wants PHP extensions that may not be in the image: {}",
                composer.extensions.join(", ")
            ));
        }
    }
    plan.internal_port = PORT;
    plan.decide("port", PORT, "Apache is told to listen there");
    plan.env.insert("PORT".to_owned(), PORT.to_string());
    plan.kill_signal = Some(perch_types::machine_config::Signal::SigTerm);
    plan.decide("signal", "SIGTERM", "Apache ends its processes on it");
    plan.memory_mb = 256;
    plan.decide("memory", "256 MB", "Apache with small pages takes about 60 MB");
    if !files.has(".dockerignore") {
        plan.dockerignore = Some(DOCKERIGNORE.to_owned());
    }
    Some(plan)
}

/// What matters of a composer.json.
#[derive(Debug, Default)]
struct Composer {
    /// It requires packages beside PHP itself.
    packages: bool,
    /// Extensions that it requires.
    extensions: Vec<String>,
}

impl Composer {
    /// Reads the keys of `require`; a broken file requires nothing, composer will say why.
    fn read(text: &str) -> Self {
        let Some((_, after)) = text.split_once("\"require\"") else {
            return Self::default();
        };
        let block =
            after.split_once('{').and_then(|(_, it)| it.split_once('}')).map_or("", |it| it.0);
        let mut composer = Self::default();
        for entry in block.split(',') {
            let name = entry.split('"').nth(1).unwrap_or_default();
            if name.starts_with("ext-") {
                composer.extensions.push(name.to_owned());
            } else if name.contains('/') {
                composer.packages = true;
            }
        }
        composer
    }
}

fn dockerfile(files: &dyn Files, folder: &str, composer: Option<&Composer>) -> String {
    let docroot = if folder.is_empty() { ROOT.to_owned() } else { format!("{ROOT}/{folder}") };
    let packages = match composer {
        Some(composer) if composer.packages => {
            let lock = if files.has("composer.lock") { " composer.lock" } else { "" };
            format!(
                r#"
# Packages first: this layer is built again only when they change.
COPY composer.json{lock} ./
RUN command -v composer >/dev/null \
    || {{ apt-get update && apt-get install -y --no-install-recommends git unzip \
    && curl -sSL https://getcomposer.org/installer | php -- --install-dir=/usr/local/bin --filename=composer; }}
RUN COMPOSER_ALLOW_SUPERUSER=1 composer install --no-dev --no-interaction --no-progress --no-scripts --no-autoloader
"#
            )
        }
        _ => String::new(),
    };
    let autoload = if composer.is_some_and(|it| it.packages) {
        "RUN COMPOSER_ALLOW_SUPERUSER=1 composer dump-autoload --no-dev --optimize\n"
    } else {
        ""
    };
    // Below a folder of its own everything is meant to be seen; beside the program not all is.
    let hidden = if folder.is_empty() {
        "        '<LocationMatch \"^/(vendor/|composer\\.|Dockerfile|fly\\.toml)\">' \\\n        \
         '  Require all denied' '</LocationMatch>' \\\n"
    } else {
        ""
    };
    format!(
        r#"# Written by `perch launch`. It is yours now: change what you like.
FROM {BASE_IMAGE}

# Apache listens on {PORT}, serves {docroot}, reads .htaccess and shows no hidden files.
# Its logs go through a program, because a machine's /dev/stdout cannot be opened by name.
RUN a2enmod -q rewrite remoteip \
    && rm -f /etc/apache2/sites-enabled/* \
    && echo 'Listen 0.0.0.0:{PORT}' > /etc/apache2/ports.conf \
    && printf '%s\n' \
        'ServerName localhost' 'ServerTokens Prod' 'ServerSignature Off' \
        'DocumentRoot {docroot}' \
        'ErrorLog "|/usr/bin/cat"' 'CustomLog "|/usr/bin/cat" combined' \
        'RemoteIPHeader X-Forwarded-For' \
        'RemoteIPInternalProxy 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 fd00::/8' \
        '<Directory {ROOT}>' '  Options -Indexes +FollowSymLinks' '  AllowOverride All' \
        '  Require all granted' '  DirectoryIndex index.php index.html' '</Directory>' \
        '<LocationMatch "/\.(?!well-known/)">' '  Require all denied' '</LocationMatch>' \
{hidden}        > /etc/apache2/sites-enabled/app.conf

WORKDIR {ROOT}
{packages}
COPY . .
{autoload}
EXPOSE {PORT}
CMD ["apache2-foreground"]
"#
    )
}
