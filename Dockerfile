# An image with the environment of this repository, whose commands run in /opt/adpe.
#   docker build -t adpe .                                                    CPU ops of mmcv; torch as pip finds it
#   docker build -t adpe --build-arg EXTRA_INDEX=URL .                        torch's builds for the CPU, from their index
#   docker build -t adpe --build-arg BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04 --build-arg CUDA_ARCHITECTURES="8.0;9.0" .
#                                                                             CUDA ops, for A100 and H100
#   docker run --gpus all --ipc=host -v $PWD/data:/opt/adpe/data -v $PWD/work_dirs:/opt/adpe/work_dirs adpe make doctor
# The base needs apt and a Python 3.10-3.12; for CUDA ops an nvcc of the CUDA that torch is built with.
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}
ARG EXTRA_INDEX=""
ARG CUDA_ARCHITECTURES=""
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        g++ make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/adpe
ENV VENV=/opt/venv ADPE_CACHE=/opt/cache PATH=/opt/venv/bin:$PATH
# What the set-up reads, so that other changes do not build the environment anew. adpe.files takes a tree without configs/
# for an installed package.
COPY requirements requirements
COPY tools/setup.sh tools/build_mmcv.py tools/
COPY adpe/__init__.py adpe/doctor.py adpe/files.py adpe/
COPY configs/README.md configs/
COPY pyproject.toml setup.py README.md Makefile ./
RUN PIP_NO_CACHE_DIR=1 PIP_EXTRA_INDEX_URL="$EXTRA_INDEX" TORCH_CUDA_ARCH_LIST="$CUDA_ARCHITECTURES" make setup \
    && rm -rf /opt/cache
COPY . .
CMD ["make", "doctor"]
