#!/usr/bin/env bash
# Runs on a GPU machine without network, in the checkout that holds .gpukit:
#
#   bash .gpukit/remote.sh STAGE[:SECONDS]...      install smoke canary table gguf torchao beside
#
# What is needed is installed first, if it is not yet. A stage ends when its seconds or those of the whole command (GPUKIT_LIMIT,
# 500) are over, and keeps what was measured until then. It leaves a text with its tables in $OUT. There, too: results.tar.gz, the
# parquet tables and logs of all stages until then, and accepted.txt, which of the demands are reached. Stages are independent of
# one another. Files are few, since no more than eight may come back from a call.
set -uo pipefail

kit=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$kit")
work=${GPUKIT_WORK:-${TMPDIR:-/tmp}/gpukit}
site=$work/site
out=${OUT:-$work/out}
python=${GPUKIT_PYTHON:-python3}
device=${GPUKIT_DEVICE:-cuda}
limit=${GPUKIT_LIMIT:-500}
ends=$limit  # of the stage that runs, in seconds since the start
model=${GPUKIT_MODEL:-dummy:llama-2-7b}
profile=${GPUKIT_PROFILE:-quick}
mkdir -p "$work" "$out"
cd "$root" || exit 2

# shellcheck source=llama.sh
. "$kit/llama.sh"

say() { printf '[%4d s] %s\n' "$SECONDS" "$*"; }
left() { echo $((ends - SECONDS)); }
# Ends what runs too long as Ctrl-C would: what was measured until then is kept.
bounded() { local most=$1; shift; timeout --signal=INT --kill-after=20 "$most" "$@"; }

# Where the toolkit and its libraries are: nvcc's folder, and what torch's own wheels brought.
environment() {
    local nvidia
    find_cuda || true
    nvidia=$("$python" -c 'import nvidia; print(list(nvidia.__path__)[0])' 2> /dev/null)/cu13
    export GPUKIT_NVIDIA=$nvidia
    export LD_LIBRARY_PATH="$nvidia/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    # Headers that the toolkit may lack (cublas_v2.h and others); after its own.
    export CPLUS_INCLUDE_PATH="${CPLUS_INCLUDE_PATH:+$CPLUS_INCLUDE_PATH:}$nvidia/include"
    export LIBRARY_PATH="$work/link${LIBRARY_PATH:+:$LIBRARY_PATH}"
    export PYTHONPATH="$site:$root" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
    export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1
    export QUANTBENCH_CACHE=$work/cache QUANTBENCH_LLAMA_CPP=$kit/llama.cpp
    export TORCHINDUCTOR_CACHE_DIR=$work/inductor TRITON_CACHE_DIR=$work/triton  # what one worker compiled the next one takes
    export GPTQMODEL_TORCH_EXTENSIONS_DIR=$work/extensions GPTQMODEL_OFFLINE=1
    export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0} MAX_JOBS=${MAX_JOBS:-$(nproc)}
    export COLUMNS=160
    "$python" -c 'import ctypes; ctypes.CDLL("libpcre2-8.so.0")' 2> /dev/null || export LD_LIBRARY_PATH="$LD_LIBRARY_PATH:$kit/lib"
}

install() {
    environment
    [ -f "$work/installed" ] && return 0
    say "installing"
    mkdir -p "$site"
    if compgen -G "$kit/wheels/*.whl" > /dev/null; then
        "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" \
            "$kit"/wheels/*.whl || { say "pip could not install the wheels"; return 1; }
    fi
    # The checkout itself, as an installed distribution: entry points and all, also for processes whose PYTHONPATH is another.
    "$python" - "$root" "$site" "$device" << 'P' || return 1
import re, sys, sysconfig, tomllib
from importlib.metadata import distributions
from pathlib import Path
root, site, device = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
info = site / f"{project['name']}-{project['version']}.dist-info"
info.mkdir(parents=True, exist_ok=True)
(info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
groups = {"console_scripts": project["scripts"], **project["entry-points"]}
lines = [f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in group.items()) for name, group in groups.items()]
(info / "entry_points.txt").write_text("\n".join(lines))
here = {re.sub(r"[-_.]+", "-", each.metadata["Name"] or "").lower() for each in distributions()}
lacking = sorted({re.match(r"[\w.-]+", each)[0].lower() for each in project["dependencies"]} - here)
if lacking:
    sys.exit(f"not installed, and nothing runs without: {', '.join(lacking)}")
try:
    if device != "cpu":  # a rehearsal leaves the Python that it borrows as it is
        Path(sysconfig.get_path("purelib"), "gpukit.pth").write_text(f"{site}\n{root}\n")
except OSError as error:
    print(f"no .pth could be written ({error}): tests that change PYTHONPATH will miss packages")
P
    mkdir -p "$work/extensions"
    [ "$device" = cpu ] || link_names "$GPUKIT_NVIDIA" "$work/link"
    install_llama
    install_marlin
    touch "$work/installed"
    say "installed"
}

install_llama() {
    [ "$device" = cpu ] && return 0
    if [ -f "$kit/llama_cpp.tar.xz" ]; then
        "$python" -m tarfile -e "$kit/llama_cpp.tar.xz" "$site" && say "llama.cpp for CUDA unpacked"
    elif [ -f "$kit/llama_source.tar.xz" ]; then
        say "llama.cpp is compiled in the background: $work/llama.log"
        setsid nohup bash "$kit/remote.sh" build-llama > "$work/llama.log" 2>&1 < /dev/null &
        echo $! > "$work/llama.pid"
    fi
}

build-llama() {
    local source=$work/llama started=$SECONDS
    environment
    mkdir -p "$source" && "$python" -m tarfile -e "$kit/llama_source.tar.xz" "$source" || return 1  # there may be no xz
    compile_llama "$source" "$work/link" ON || return 1
    cp -rP "$source/llama_cpp" "$source"/llama_cpp_python-*.dist-info "$site/"
    say "llama.cpp compiled in $((SECONDS - started)) s"
}

# gptqmodel compiles Marlin when it is first asked for. What was compiled elsewhere is put where it looks, if it loads; else it is
# compiled now, in the background.
install_marlin() {
    [ "$device" = cpu ] && return 0
    say "Marlin is made ready in the background: $work/marlin.log"
    setsid nohup "$python" - "$kit" > "$work/marlin.log" 2>&1 << 'P' &
import lzma, sys, time
from pathlib import Path
started = time.perf_counter()
import torch
from gptqmodel import extension
from gptqmodel.utils.marlin import _MARLIN_FP16_TORCH_OPS_EXTENSION as marlin
made = [each for each in Path(sys.argv[1]).glob("marlin_fp16-*.so.xz") if f"torch{torch.__version__.partition('+')[0]}-" in each.name]
if made:
    place = marlin.build_root()
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{marlin.name}.so").write_bytes(lzma.decompress(made[0].read_bytes()))
print("marlin_fp16", extension.is_available("marlin_fp16"), extension.error("marlin_fp16") or "no error", f"{time.perf_counter() - started:.1f} s")
P
    echo $! > "$work/marlin.pid"
}

# Waits for what the background makes; nothing may be timed beside a compiler.
ready() {
    local each most=${1:-240} since=$SECONDS
    [ "$device" = cpu ] && return 0
    for each in marlin llama; do
        [ -f "$work/$each.pid" ] || continue
        while kill -0 "$(cat "$work/$each.pid")" 2> /dev/null && [ $((SECONDS - since)) -lt "$most" ]; do sleep 1; done
        say "$each: $(tail -n 1 "$work/$each.log" | cut -c 1-200)"
    done
    [ $((SECONDS - since)) -lt 2 ] || say "waited $((SECONDS - since)) s for compilers"
}

smoke() {
    {
        date -u; uname -r; nproc; free -g | head -n 2; df -h "$work" | tail -n 1
        nvidia-smi 2>&1 | head -n 15
        nvidia-smi --query-gpu=name,driver_version,memory.total,persistence_mode,clocks.max.sm --format=csv 2>&1
        echo "CUDA_HOME=${CUDA_HOME:-none}"; "${CUDA_HOME:-/none}/bin/nvcc" --version 2>&1 | tail -n 2; cmake --version 2>&1 | head -n 1
        "$python" -m pip list --format=freeze 2>&1
    } > "$out/machine.txt"
    grep -i -E 'H100|H200|V13|CUDA_HOME|^torch=' "$out/machine.txt" | head -n 8
    say "facts"
    bounded 180 "$python" "$kit/gpu_check.py" --device "$device" --out "$out/check.json" 2> "$work/check.err" || tail -n 5 "$work/check.err"
    say "tests marked gpu"
    bounded "$(left)" "$python" -m pytest tests/gpu/test_cuda.py tests/metrics/test_gpu.py tests/passes/test_memory.py tests/passes/test_bandwidth.py \
        tests/methods/test_random_weights.py -m gpu -W default -p no:cacheprovider -q -ra --tb=short --junitxml="$out/tests.xml" \
        > "$out/tests.txt" 2>&1
    say "tests ended with $?"
    grep -E '^(FAILED|ERROR|SKIPPED)|passed|failed' "$out/tests.txt" | cut -c 1-240 | tail -n 25
}

# One matrix file through pytest: measure NAME FILE [pytest's further arguments]
measure() {
    local name=$1 file=$2 marked=(-m gpu) ended; shift 2
    [ "$device" = cpu ] && marked=()
    mkdir -p "$work/results"
    [ -d "$work/results/$name/scenarios" ] && set -- "$@" --quantbench-resume=last  # an earlier call's was cut short
    if [ "$(left)" -lt 30 ]; then say "$name is left out: $(left) s left"; return; fi
    say "$name: $(left) s left"
    bounded $(($(left) - 15)) "$python" -m pytest bench/ "${marked[@]}" -W default -p no:cacheprovider -q --tb=no -ra \
        --quantbench-matrix="$file" --quantbench-device="$device" --quantbench-profile="$profile" --quantbench-no-probes \
        --quantbench-results="$work/results/$name" --quantbench-keep-jobs="$work/jobs/$name" --quantbench-timeout=240 "$@" \
        > "$work/$name.log" 2>&1
    ended=$?
    [ $ended = 0 ] && touch "$work/$name.done"
    say "$name ended with $ended"
    "$python" - "$work/results/$name" << 'P' 2>&1 | tee "$out/$name.txt"
import sys
import pandas as pd
from pathlib import Path
folder = Path(sys.argv[1], "scenarios")
if not folder.is_dir():
    sys.exit("no rows")
rows = pd.read_parquet(folder)
wanted = ["scenario_id", "status", "kernel", "decode_path", "decode_tps", "launch_share", "device_step_s", "compile_s", "prefill_tps", "ttft_s",
          "mbu", "decode_ratio", "weight_bytes", "predicted_weight_bytes", "peak_device_allocated_bytes", "peak_device_reserved_bytes",
          "peak_device_used_bytes", "device_context_bytes", "load_s", "kld_mean", "decode_fallback", "reason"]
rows = rows[[each for each in wanted if each in rows.columns]].copy()
for each in rows.columns:
    if each.endswith("_bytes"):
        rows[each] = (rows[each].astype("Float64") / 1e9).round(2)
    elif rows[each].dtype.kind == "f":
        rows[each] = rows[each].map(lambda value: float(f"{value:.4g}") if value == value else value)
rows.columns = [each.replace("_bytes", "_GB").replace("peak_device_", "peak_") for each in rows.columns]
pd.set_option("display.width", 320, "display.max_columns", 30, "display.max_rows", 200, "display.max_colwidth", 70)
print(rows.to_string(index=False))
P
    "$python" -c 'from quantbench.cli import main; main()' tables --results "$work/results/$name" >> "$out/$name.txt" 2>&1
    collect
}

# All parquet tables, pytest's logs and what each job left.
collect() {
    (cd "$work" && find results jobs ./*.log -type f \( -path 'results/*' -o -name '*.json' -o -name '*.log' \) -size -2M -print0 \
        2> /dev/null | tar -czf "$out/results.tar.gz" --null -T -)
}

canary() { ready 240; measure canary "$kit/matrix/canary.toml"; }
table() {
    ready 240
    [ -f "$work/eager.done" ] || measure eager "$kit/matrix/eager.toml" --quantbench-model="$model"
    measure table "$kit/matrix/table.toml" --quantbench-model="$model"
}
gguf() { ready 400; measure gguf "$kit/matrix/gguf.toml" --quantbench-model="$model"; }
torchao() { ready 240; measure torchao "$kit/matrix/torchao.toml" --quantbench-model="$model"; }

beside() {
    ready 240
    say "beside: $(left) s left"
    bounded "$(left)" "$python" "$kit/beside.py" --device "$device" --model "$model" --seconds $(($(left) - 20)) \
        ${GPUKIT_VARIANTS:+--variants "$GPUKIT_VARIANTS"} ${GPUKIT_COMPILED+--compiled "$GPUKIT_COMPILED"} \
        ${GPUKIT_BATCHES:+--batches "$GPUKIT_BATCHES"} \
        --out "$work/beside.jsonl" 2> "$work/beside.log"
    say "beside ended with $?"
    cp "$work/beside.jsonl" "$out/"
}

[ $# -gt 0 ] || set -- install
if [ "$1" = build-llama ]; then build-llama; exit $?; fi
for stage in "$@"; do
    case ${stage%%:*} in
        install | smoke | canary | table | gguf | torchao | beside) ;;
        *) echo "stage $stage is not known; see the top of $0" >&2; exit 2 ;;
    esac
done
install || exit 1
for stage in "$@"; do
    [ "$stage" = install ] && continue
    ends=$limit
    if [ "$(left)" -lt 60 ]; then say "$stage is left out: $(left) s left"; continue; fi
    most=${stage#*:}
    if [ "$most" != "$stage" ] && [ "$most" -lt "$(left)" ]; then ends=$((SECONDS + most)); fi
    "${stage%%:*}"
done
[ -d "$work/results/table" ] || [ -f "$work/beside.jsonl" ] &&
    "$python" "$kit/accepted.py" "$work/results" "$work/beside.jsonl" 2>&1 | tee "$out/accepted.txt"
(cd "$work" && tail -n 300 -- *.log 2> /dev/null | grep -v '^$' > "$out/logs.txt")
ls -la "$out"
