FROM scratch
ADD debian.tar /
COPY docker-clean /etc/apt/apt.conf.d/docker-clean
CMD ["bash"]
