# One image for every cdm command; without arguments it runs `cdm node`.
#
#   docker build -t cdm:local .
#
# Both stages are made from any image that has Python 3.11 or later with venv, and useradd. A tag can be given to another
# image; where that matters, say which one is meant: --build-arg PYTHON_IMAGE=python@sha256:…
ARG PYTHON_IMAGE=python:3.13.9-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# Where no package index is reached from here, put wheels into the folder wheelhouse/, and build with
# `--build-arg PIP_NO_INDEX=1`. Other build arguments are pip's own, for an index of your own.
ARG PIP_NO_INDEX
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG PIP_FIND_LINKS=/source/wheelhouse
WORKDIR /source
RUN python3 -m venv /opt/cdm
COPY LICENSE README.md pyproject.toml constraints.txt ./
# The pattern lets the folder be missing.
COPY LICENSE wheelhous[e] wheelhouse/
COPY cdm cdm
# What only installs things does not belong into what runs.
RUN /opt/cdm/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt '.[http]' \
    && /opt/cdm/bin/pip uninstall --yes --quiet setuptools pip

FROM ${PYTHON_IMAGE}
RUN useradd --system --uid 10001 --home-dir /home/cdm --create-home --shell /usr/sbin/nologin cdm
COPY --from=build /opt/cdm /opt/cdm
ENV PATH=/opt/cdm/bin:$PATH \
    PYTHONUNBUFFERED=1
# Slices are this user, too: only root can give them users of their own (docs/security.md).
USER cdm
WORKDIR /home/cdm
# It asks over NATS, as others see this node: an answer means that the process runs and that it is connected.
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s --retries=3 CMD ["cdm", "health"]
# The list form: SIGTERM reaches cdm itself and no shell.
ENTRYPOINT ["cdm"]
CMD ["node"]
