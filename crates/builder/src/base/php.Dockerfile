FROM docker.io/library/debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
      ca-certificates apache2 libapache2-mod-php8.2 php8.2-cli php8.2-mbstring php8.2-xml \
      php8.2-curl php8.2-sqlite3 php8.2-pgsql php8.2-mysql php8.2-zip php8.2-gd php8.2-intl \
      php8.2-opcache composer unzip \
 && rm -rf /var/lib/apt/lists/* /var/www/html/* \
 && a2enmod rewrite headers expires remoteip \
 && a2dissite 000-default \
 && a2disconf other-vhosts-access-log serve-cgi-bin \
 && chown www-data:www-data /var/www/html \
 && ln -s /usr/bin/php8.2 /usr/local/bin/php \
 && ln -s /usr/bin/composer /usr/local/bin/composer
COPY php-apache.conf /etc/apache2/sites-enabled/app.conf
COPY php-ports.conf /etc/apache2/ports.conf
COPY php-perch.ini /etc/php/8.2/apache2/conf.d/90-app.ini
COPY --chmod=755 apache2-foreground /usr/local/bin/apache2-foreground
WORKDIR /var/www/html
EXPOSE 8080
STOPSIGNAL SIGWINCH
CMD ["apache2-foreground"]
