FROM docker.io/library/debian:bookworm-slim
# pip may install here: the image is the environment, so the guard for hosts is taken away.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates netbase tzdata python3 python3-pip python3-venv \
 && rm -rf /var/lib/apt/lists/* /usr/lib/python3*/EXTERNALLY-MANAGED \
 && ln -s /usr/bin/python3 /usr/local/bin/python \
 && ln -s /usr/bin/python3 /usr/local/bin/python3 \
 && ln -s /usr/bin/pip3 /usr/local/bin/pip \
 && ln -s /usr/bin/pip3 /usr/local/bin/pip3
ENV LANG=C.UTF-8
CMD ["python3"]
