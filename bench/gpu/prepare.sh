#!/usr/bin/env bash
# Collects, on a machine with a package registry, all that a GPU machine without network lacks, in CHECKOUT/.gpukit.
#
#   bash bench/gpu/prepare.sh [CHECKOUT]
#
# Takes about a minute, and a C compiler for one small extension. What build_cuda.sh made is taken along where it is there
# (GPUKIT_PREBUILT, else prebuilt/ beside this script, else gpu/prebuilt in a folder beside the checkout); without it the GPU
# machine compiles for itself, which costs minutes of its time. GPUKIT_SCRIPTS_ONLY=1 fetches nothing: enough for a rehearsal on
# a machine where all that quantbench needs is installed.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
checkout=$(cd "${1:-$here/../..}" && pwd)
kit=$checkout/.gpukit
limit_mib=${GPUKIT_LIMIT_MIB:-63}  # 64 may travel, the checkout's files and this folder together; one is kept back
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1

# Versions as the project pins them; the GPU machine has torch, transformers, accelerate, peft, pandas, pyarrow and the like already.
binary=(bitsandbytes==0.50.2 torchao==0.18.0 optimum==2.3.0 gguf==0.19.0 cattrs==26.2.1 platformdirs==4.14.7 diskcache==5.6.3
        datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19 pytest==9.2.0 pytest-benchmark==5.3.1)
pure=(gptqmodel==7.6.0 device-smi==0.5.7 tokenicer==0.0.14 logbar==0.4.15 defuser==0.0.28)  # source distributions of Python alone
extension=pypcre==0.6.4                                                                  # a source distribution with C in it
llama="llama-cpp-python==0.3.36"

for each in "${GPUKIT_PREBUILT:-$here/prebuilt}" "$checkout"/../*/gpu/prebuilt; do
    if [ -d "$each" ]; then prebuilt=$each; break; fi
done
prebuilt=${prebuilt:-$here/prebuilt}

say() { printf '%s\n' "$*" >&2; }
end() { say "prepare.sh: $*"; exit 1; }

# A CPython 3.12 with headers, for the one extension that no registry has ready for it.
python312() {
    local each
    for each in ${GPUKIT_PYTHON312:-} python3.12 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python3.12; do
        each=$(command -v "$each" 2> /dev/null) || continue
        "$each" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2> /dev/null && { echo "$each"; return; }
    done
    return 1
}

platforms=()  # pip matches each of these exactly
for each in $(seq -f manylinux_2_%.0f 39 -1 5) manylinux2014 manylinux2010 manylinux1; do platforms+=(--platform "${each}_x86_64"); done

rm -rf "$kit"
mkdir -p "$kit/wheels" "$kit/llama.cpp" "$kit/lib" "$scratch/sdist"

llama_how="not taken along" marlin_how="not taken along"
fetch() {
    local each compiler source version library
    say "wheels for CPython 3.12"
    for each in "${binary[@]}"; do
        python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" \
            -d "$kit/wheels" "$each" || end "$each cannot be had as a wheel"
    done
    python3 -m pip wheel --quiet --no-deps -w "$kit/wheels" "${pure[@]}" || end "one of ${pure[*]} cannot be made into a wheel"
    if compiler=$(python312); then
        "$compiler" -m pip wheel --quiet --no-deps -w "$kit/wheels" "$extension" || end "$extension cannot be compiled"
    else
        say "no CPython 3.12 here (name one in GPUKIT_PYTHON312): without $extension the rows of gptq and awq will be errors"
    fi
    for each in "$kit"/wheels/*; do
        case $each in
            *-none-any.whl | *-cp312-* | *-abi3-* | *-py3-none-*linux*.whl) ;;
            *) end "$(basename "$each") is for another Python" ;;
        esac
    done

    say "bitsandbytes with its library for CUDA 13.0 alone"
    python3 "$here/repack.py" "$kit"/wheels/bitsandbytes-*.whl libbitsandbytes_cuda130.so libbitsandbytes_cpu.so

    say "llama.cpp: converter, Python package, and the code for CUDA"
    python3 -m pip download --quiet --no-deps --no-binary :all: -d "$scratch/sdist" "$llama" || end "$llama cannot be had"
    tar -xzf "$scratch"/sdist/llama_cpp_python-*.tar.gz -C "$scratch/sdist"
    source=$(echo "$scratch"/sdist/llama_cpp_python-*/)
    cp -r "$source"vendor/llama.cpp/{convert_hf_to_gguf.py,conversion,gguf-py,LICENSE} "$kit/llama.cpp/"
    version=${llama##*==}
    if [ -f "$prebuilt/llama_cpp-$version-cuda13-sm90.tar.xz" ]; then
        cp "$prebuilt/llama_cpp-$version-cuda13-sm90.tar.xz" "$kit/llama_cpp.tar.xz"
        llama_how="made before, for sm_90"
    else
        tar -C "$source" -cJf "$kit/llama_source.tar.xz" llama_cpp \
            vendor/llama.cpp/{CMakeLists.txt,LICENSE,cmake,ggml,include,licenses,src,vendor}
        llama_how="source: compiled on the GPU machine"
    fi
    marlin_how="compiled on the GPU machine"
    if compgen -G "$prebuilt/marlin_fp16-*.so.xz" > /dev/null; then
        cp "$prebuilt"/marlin_fp16-*.so.xz "$kit/"
        marlin_how="made before, for sm_90"
    fi

    # The regular expressions of gptqmodel need this library; most systems have it.
    library=$(ldconfig -p 2> /dev/null | sed -n 's/.*libpcre2-8\.so\.0 .*=> //p' | head -n 1)
    [ -z "$library" ] || cp -L "$library" "$kit/lib/"
}
[ -n "${GPUKIT_SCRIPTS_ONLY:-}" ] || fetch

cp "$here"/{remote.sh,llama.sh,gpu_check.py,beside.py,accepted.py,README.md} "$kit/"
cp -r "$here/matrix" "$kit/"
find "$kit" -name __pycache__ -prune -exec rm -rf {} +

# git must not see it, and so it travels only where it is named.
exclude=$(git -C "$checkout" rev-parse --path-format=absolute --git-path info/exclude)
mkdir -p "$(dirname "$exclude")"
grep -qsx '/.gpukit/' "$exclude" || echo '/.gpukit/' >> "$exclude"

mebibytes() { awk -v b="$1" 'BEGIN { printf "%.1f", b / 1048576 }'; }
size() { find "$kit" -type f -printf '%s\n' | awk '{ s += $1 } END { print s + 0 }'; }
rest=$(git -C "$checkout" ls-files -z --cached --others --exclude-standard | (cd "$checkout" && xargs -0 stat -c %s 2> /dev/null) |
    awk '{ s += $1 } END { print s + 0 }')
own=$(size)
if [ $((own + rest)) -gt $((limit_mib * 1048576)) ]; then  # Marlin is compiled in two minutes, llama.cpp in five
    rm -f "$kit"/marlin_fp16-*.so.xz
    marlin_how="compiled on the GPU machine: what was made before has no room"
    own=$(size)
fi
say ""
say "llama.cpp: $llama_how; Marlin: $marlin_how"
say "$(mebibytes "$own") MiB in $kit"
say "$(mebibytes "$rest") MiB in the checkout's other files"
say "$(mebibytes $((own + rest))) of $limit_mib MiB"
say "must travel with the checkout: .gpukit"
[ $((own + rest)) -le $((limit_mib * 1048576)) ] || end "that is too much: leave out wheels, or files of the checkout"
