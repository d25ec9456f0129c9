# docker build -f docker/cuda.Dockerfile -t fastcifar:cuda .
# mkdir -p runs
# docker run --rm --gpus all --user "$(id -u):$(id -g)" -e HOME=/tmp -v "$PWD/runs:/trainings/runs" -v fastcifar-data:/data \
#   fastcifar:cuda train quick
# Docker would make a missing runs/ as root. With --user the files in it are yours.
# PyTorch's own wheels bring CUDA, and NVIDIA's wheels bring nvcc: the base image needs neither. The host has the driver.
FROM python:3.12-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements requirements
COPY build_backend build_backend
RUN pip install --no-cache-dir -c requirements/constraints.txt setuptools wheel torch \
 && pip install --no-cache-dir $(PYTHONPATH=build_backend python -c 'import fastcifar_backend as backend; print(*backend.NVCC)')
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE CHANGELOG.md CONTRIBUTING.md ./
COPY csrc csrc
COPY configs configs
COPY fastcifar fastcifar
RUN FASTCIFAR_CUDA=wheel FASTCIFAR_CUDA_ARCHS=all pip wheel --no-deps --no-build-isolation -w /wheels .

FROM python:3.12-slim-bookworm
# torch.compile calls a C compiler: it makes the batches of the eager and the compiled engine.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements requirements
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir -c requirements/constraints.txt torch \
 && pip install --no-cache-dir -c requirements/constraints.txt "$(echo /wheels/*.whl)[parquet]" && rm -rf /wheels
# Whoever --user names may write.
RUN useradd --create-home trainer && mkdir -p /data /trainings/runs && chown -R trainer /data /trainings \
 && chmod -R a+rwX /data /trainings
USER trainer
WORKDIR /trainings
ENV FASTCIFAR_DATA=/data
VOLUME ["/data", "/trainings/runs"]
ENTRYPOINT ["fastcifar"]
CMD ["doctor"]
