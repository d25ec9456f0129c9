# docker build -f docker/cpu.Dockerfile -t fastcifar:cpu .
# mkdir -p runs
# docker run --rm --user "$(id -u):$(id -g)" -e HOME=/tmp -v "$PWD/runs:/trainings/runs" -v fastcifar-data:/data \
#   fastcifar:cpu train quick
# Docker would make a missing runs/ as root. With --user the files in it are yours.
FROM python:3.12-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements requirements
# PyTorch's index has PyTorch; it may lack the pinned versions of what PyTorch needs, which comes from PyPI.
RUN pip install --no-cache-dir -c requirements/constraints.txt --no-deps --index-url https://download.pytorch.org/whl/cpu torch \
 && pip install --no-cache-dir -c requirements/constraints.txt setuptools wheel torch
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE CHANGELOG.md CONTRIBUTING.md ./
COPY build_backend build_backend
COPY csrc csrc
COPY configs configs
COPY fastcifar fastcifar
RUN FASTCIFAR_CUDA=0 pip wheel --no-deps --no-build-isolation -w /wheels .

FROM python:3.12-slim-bookworm
WORKDIR /src
COPY requirements requirements
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir -c requirements/constraints.txt --no-deps --index-url https://download.pytorch.org/whl/cpu torch \
 && pip install --no-cache-dir -c requirements/constraints.txt "$(echo /wheels/*.whl)[parquet]" && rm -rf /wheels
# Whoever --user names may write.
RUN useradd --create-home trainer && mkdir -p /data /trainings/runs && chown -R trainer /data /trainings \
 && chmod -R a+rwX /data /trainings
USER trainer
WORKDIR /trainings
ENV FASTCIFAR_DATA=/data OMP_WAIT_POLICY=PASSIVE
VOLUME ["/data", "/trainings/runs"]
ENTRYPOINT ["fastcifar"]
CMD ["doctor"]
