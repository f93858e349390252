#!/usr/bin/env bash
# Checks and measures Hearth on one GPU, from binaries that were built before: devices, verify, training with a kill and a
# resume, training and inference speed, the loader's share of an epoch, and PyTorch beside it where python3 has torch.
# Writes gpu-check.md and gpu-check.json. Needs no network. docs/guide/backends.md describes it.
set -u
export LC_ALL=C

usage() {
    cat <<'END'
usage: tools/gpu-check.sh [OPTIONS]

  --train FILE      the `train` binary          [env: HEARTH_TRAIN] [default: target/debug/train]
  --infer FILE      the `infer` binary          [env: HEARTH_INFER] [default: target/debug/infer]
  --backend NAME    the backend and its device  [default: what `auto` picks, which must be a GPU]
  --out DIR         where results are written   [default: gpu-check]
  --limit SECONDS   for the whole               [default: 480]
  --networks "…"    networks that are measured  [default: resnet50 resnet18 vgg16 googlenet alexnet]
  --batches "…"     batch sizes, the most important first                  [default: 64 256 8]
  --dtypes "…"      types of numbers                                       [default: f32 bf16]
  --size PIXELS     side of the images          [default: each network's own]
  --data DIR        images in folders of classes, to measure the loader with [default: the embedded digits]
  --python FILE     the Python with torch and torchvision                  [default: python3]
  --quick           small and short: for a software adapter
END
}

train=${HEARTH_TRAIN:-target/debug/train} infer=${HEARTH_INFER:-target/debug/infer}
backend='' out=gpu-check limit=480 data='' python=python3 size=''
networks='resnet50 resnet18 vgg16 googlenet alexnet' batches='64 256 8' dtypes='f32 bf16'
iters=10 warmup=3 row_limit=45 epochs=4 more_digits='' verify_more=''
# First, so that other options override it wherever it is.
for argument in "$@"; do
    if [ "$argument" = --quick ]; then
        networks='resnet18 resnet20' batches='2 1' dtypes='f32' size=32
        iters=2 warmup=1 epochs=2 more_digits='--batch-size 256' verify_more='--arch resnet20'
    fi
done
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --quick) shift; continue ;;
    esac
    [ $# -ge 2 ] || { echo "error: $1 needs a value, or is no option; see --help" >&2; exit 2; }
    case $1 in
        --train) train=$2 ;; --infer) infer=$2 ;; --backend) backend=$2 ;; --out) out=$2 ;; --limit) limit=$2 ;;
        --networks) networks=$2 ;; --batches) batches=$2 ;; --dtypes) dtypes=$2 ;; --size) size=$2 ;;
        --data) data=$2 ;; --python) python=$2 ;;
        *) echo "error: unknown option $1; see --help" >&2; exit 2 ;;
    esac
    shift 2
done
case $limit in '' | *[!0-9]*) echo "error: --limit takes whole seconds" >&2; exit 2 ;; esac
for program in "$train" "$infer"; do
    [ -x "$program" ] || { echo "error: $program is not there: build it, or name it by --train and --infer" >&2; exit 2; }
done
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out/logs" || exit 1
out=$(cd "$out" && pwd)
rm -rf "$out/runs" "$out"/logs/* "$out"/*.jsonl
mkdir -p "$out/runs"
: >"$out/rows.jsonl"
: >"$out/steps.jsonl"
unset HEARTH_BACKEND

# Each command gets a process group of its own, so that a time limit ends its children too.
set -m
running=''
trap '[ -z "$running" ] || kill -KILL -- "-$running" 2>/dev/null' EXIT
trap 'exit 130' INT TERM

# limited SECONDS COMMAND…: its exit status, or 124 where it took longer.
limited() {
    local deadline=$((SECONDS + $1)) status=0
    shift
    "$@" &
    running=$!
    while kill -0 "$running" 2>/dev/null; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            kill -TERM -- "-$running" 2>/dev/null
            sleep 1
            kill -KILL -- "-$running" 2>/dev/null
            wait "$running" 2>/dev/null
            running=''
            return 124
        fi
        sleep 0.1
    done
    wait "$running"
    status=$?
    running=''
    return "$status"
}

# Text as a JSON string.
quote() {
    printf '%s' "$1" | tr '\n\t\r' '   ' | tr -d '\000-\037' | sed 's/\\/\\\\/g; s/"/\\"/g; s/^/"/; s/$/"/'
    [ -n "$1" ] || printf '""'
}

# field NAME: the value of a key in the one flat JSON object a line that is read.
field() { sed -n "s/.*\"$1\":\"\{0,1\}\([^\",}]*\).*/\1/p"; }

# The last error in a log, or its last line.
reason() {
    local line
    line=$(grep -a '^error: ' "$1" | tail -n 1 | cut -c 1-300)
    [ -n "$line" ] || line=$(grep -a . "$1" | tail -n 1 | cut -c 1-300)
    line=${line#error: }
    printf '%s' "${line:-no reason was given}"
}

remaining() { echo $((limit - SECONDS)); }

# note STEP RESULT SECONDS TEXT: one row of the table of steps.
note() {
    printf '{"step":%s,"result":%s,"seconds":%s,"note":%s}\n' "$(quote "$1")" "$(quote "$2")" "$3" "$(quote "$4")" \
        >>"$out/steps.jsonl"
    printf '%-28s %-8s %4s s  %s\n' "$1" "$2" "$3" "$4" >&2
}

# step NAME BUDGET COMMAND…: runs it within its budget and what is left of the whole; $status is its exit status, 125
# where no time was left. Standard output goes to NAME.out, standard error to NAME.log.
step() {
    local name=$1 budget=$2 began=$SECONDS left
    shift 2
    left=$(remaining)
    [ "$budget" -le "$left" ] || budget=$left
    if [ "$budget" -lt 2 ]; then
        status=125 took=0
        return
    fi
    limited "$budget" "$@" >"$out/logs/$name.out" 2>"$out/logs/$name.log"
    status=$?
    took=$((SECONDS - began))
}

# conclude STEP TEXT: the row of a step that must end with 0.
conclude() {
    case $status in
        0) note "$1" passed "$took" "$2" ;;
        124) note "$1" failed "$took" "it took longer than its time" ;;
        125) note "$1" skipped 0 "no time was left" ;;
        *) note "$1" failed "$took" "exit code $status: $(reason "$out/logs/$1.log")" ;;
    esac
}

# ---- devices
step devices 30 "$train" devices --format json
devices_json=null
if [ "$status" = 0 ]; then
    devices_json=$(cat "$out/logs/devices.out")
    auto=$(printf '%s' "$devices_json" | tr -d '\n' | sed 's/.*"auto":/"auto":/' | sed 's/: "/:"/g' | field device)
    description=$(printf '%s' "$devices_json" | tr -d '\n' | sed 's/.*"auto":/"auto":/; s/.*"description": "\([^"]*\)".*/\1/')
else
    auto='' description=''
fi
conclude devices "auto: ${description:-none}"
if [ -z "$backend" ]; then
    case $auto in
        '' | *null* | flex* | ndarray* | tch*)
            echo "error: \`auto\` found no GPU (\`$train devices\` says why); --backend names a device" >&2
            exit 1 ;;
    esac
    backend=$auto
fi
size_args=${size:+--size $size}

# ---- verify
# shellcheck disable=SC2086 # A list of options.
step verify 75 "$infer" -q verify --backend "$backend" --format json $verify_more
verify_json=null
[ -s "$out/logs/verify.out" ] && [ "$status" != 124 ] && verify_json=$(cat "$out/logs/verify.out")
case $status in
    1 | 3) note verify failed "$took" "$(grep -c '"not_run"' "$out/logs/verify.out") networks did not run, \
$(grep -c '"differs"' "$out/logs/verify.out") differ; $(reason "$out/logs/verify.log")" ;;
    *) conclude verify "$(grep -c '"status": "equal"' "$out/logs/verify.out") networks equal flex" ;;
esac

# ---- training on the digits, a kill and a resume
# It takes the place of its shell, so that a signal to that reaches the program.
# shellcheck disable=SC2086
digits() { exec "$train" pretrain --epochs "$epochs" --seed 1 --backend "$backend" --quiet --out "$1" $more_digits; }
step train-digits 60 digits "$out/runs/whole"
conclude train-digits "$(grep -a 'last epoch' "$out/logs/train-digits.out" | sed 's/.*last epoch: //')"

# Kills the training as soon as it has a checkpoint.
killed() {
    digits "$out/runs/killed" &
    local id=$!
    while kill -0 "$id" 2>/dev/null; do
        if ls -d "$out"/runs/killed/checkpoints/step-* >/dev/null 2>&1; then break; fi
        sleep 0.1
    done
    kill -KILL "$id" 2>/dev/null
    wait "$id" 2>/dev/null
    ls -d "$out"/runs/killed/checkpoints/step-* >/dev/null 2>&1
}
# The checksum of the tensors in a safetensors file, without its header, which names the run.
tensors() {
    local header
    header=$(od -An -t u8 -N 8 "$1" 2>/dev/null | tr -d ' ')
    [ -n "$header" ] && tail -c +$((header + 9)) "$1" | cksum
}
step kill 60 killed
conclude kill "kill -9 after the first checkpoint"
if [ "$status" = 0 ]; then
    step resume 60 "$train" resume "$out/runs/killed" --backend "$backend" --quiet
    same='other weights than'
    [ "$(tensors "$out/runs/whole/last.safetensors")" != "$(tensors "$out/runs/killed/last.safetensors")" ] ||
        same='the same weights as'
    conclude resume "ended with $same the undisturbed run"
else
    note resume skipped 0 'there was nothing to resume'
fi

# ---- the loader's share of an epoch
run=$out/runs/whole what='the digits'
if [ -n "$data" ]; then
    run=$out/runs/loader what=$data
    # shellcheck disable=SC2086
    step loader 60 "$train" pretrain --data "$data" --arch resnet18 --epochs 1 --backend "$backend" --quiet --out "$run" \
        $size_args
else
    status=0 took=0
fi
share=''
if [ -s "$run/epochs.csv" ]; then
    share=$(awk -F, 'NR == 1 { for (i = 1; i <= NF; i++) at[$i] = i; next }
        { waiting = $at["waiting"]; seconds = $at["waiting"] + $at["compute"] }
        END { if (seconds > 0) printf "%.1f", 100 * waiting / seconds }' "$run/epochs.csv")
fi
if [ "$status" = 0 ] && [ -z "$share" ]; then status=1; fi
conclude loader "${share:-?} % of the last epoch's training on $what waits for images"

# ---- speed
measured=0 failed=0 skipped=0 began=$SECONDS
# Time for PyTorch is kept.
torch_reserve=0
"$python" -c 'import torch' >/dev/null 2>&1 && torch_reserve=$((limit / 5))
row() { # MODE NETWORK BATCH DTYPE
    local program=$train budget
    [ "$1" = infer ] && program=$infer
    budget=$(($(remaining) - torch_reserve - 5))
    if [ "$budget" -lt 5 ]; then
        skipped=$((skipped + 1))
        printf '{"mode":"%s","model":"%s","batch":%s,"dtype":"%s","skipped":"no time was left"}\n' "$1" "$2" "$3" "$4" \
            >>"$out/rows.jsonl"
        return
    fi
    [ "$budget" -le "$row_limit" ] || budget=$row_limit
    # shellcheck disable=SC2086
    step row "$budget" "$program" bench "$2" --in-process --backend "$backend" --batch-sizes "$3" --dtype "$4" \
        --iters "$iters" --warmup "$warmup" --format json $size_args
    if [ "$status" = 0 ] && [ -s "$out/logs/row.out" ]; then
        measured=$((measured + 1))
        tail -n 1 "$out/logs/row.out" >>"$out/rows.jsonl"
    else
        failed=$((failed + 1))
        local why
        why=$(reason "$out/logs/row.log")
        [ "$status" = 124 ] && why="it took longer than $budget s"
        printf '{"mode":"%s","model":"%s","batch":%s,"dtype":"%s","failed":%s}\n' "$1" "$2" "$3" "$4" "$(quote "$why")" \
            >>"$out/rows.jsonl"
    fi
}
# The most important rows first: whatever time is left over goes to the others.
for batch in $batches; do
    for dtype in $dtypes; do
        for network in $networks; do
            row train "$network" "$batch" "$dtype"
            row infer "$network" "$batch" "$dtype"
        done
    done
done
result=passed
[ "$failed" = 0 ] || result=failed
[ "$measured" != 0 ] || [ "$failed" != 0 ] || result=skipped
note bench "$result" $((SECONDS - began)) "$measured rows measured, $failed failed, $skipped skipped for lack of time"

# ---- PyTorch
if [ "$torch_reserve" = 0 ]; then
    note pytorch skipped 0 "$python has no torch"
else
    # It stops by itself, row by row.
    step pytorch $(($(remaining) - 3)) "$python" "$here/gpu_check_torch.py" --networks "$networks" --batches "$batches" \
        --dtypes "$dtypes" --iters "$iters" --warmup "$warmup" --seconds $(($(remaining) - 10)) $size_args
    grep -a '^{' "$out/logs/pytorch.out" >>"$out/rows.jsonl"
    conclude pytorch "$(grep -ac '"images_per_s"' "$out/logs/pytorch.out") rows measured"
fi

# ---- results
passed=$(grep -c '"result":"passed"' "$out/steps.jsonl")
bad=$(grep -c '"result":"failed"' "$out/steps.jsonl")
join() { sed '$!s/$/,/' "$1"; }
versions=$("$train" --version 2>/dev/null)
driver=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1)
{
    printf '{"tool":"gpu-check","version":%s,"finished":%s,"seconds":%s,"limit":%s,"backend":%s,"driver":%s,\n' \
        "$(quote "$versions")" "$(quote "$(date -u +%Y-%m-%dT%H:%M:%SZ)")" "$SECONDS" "$limit" "$(quote "$backend")" \
        "$(quote "$driver")"
    printf '"loader_percent":%s,\n"devices":%s,\n"verify":%s,\n' "${share:-null}" "$devices_json" "$verify_json"
    printf '"steps":[\n%s\n],\n"rows":[\n%s\n]}\n' "$(join "$out/steps.jsonl")" "$(join "$out/rows.jsonl")"
} >"$out/gpu-check.json"
{
    printf '# GPU check\n%s on `%s`%s, %s s of %s s; finished %s.\n\n' "$versions" "$backend" "${driver:+ ($driver)}" \
        "$SECONDS" "$limit" "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
    printf '| step | result | s | |\n|---|---|---|---|\n'
    while IFS= read -r line; do
        printf '| %s | %s | %s | %s |\n' "$(printf '%s' "$line" | field step)" "$(printf '%s' "$line" | field result)" \
            "$(printf '%s' "$line" | field seconds)" "$(printf '%s' "$line" | sed 's/.*"note":"\(.*\)"}$/\1/; s/\\"/"/g; s/|/\\|/g')"
    done <"$out/steps.jsonl"
    printf '\nImages/s; in parentheses what PyTorch has (channels last, autocast for types other than f32), and with `torch.compile`.\n\n'
    awk -v networks="$networks" -v batches="$batches" -v dtypes="$dtypes" '
        function get(key,  text, at) {
            at = index($0, "\"" key "\":")
            if (!at) return ""
            text = substr($0, at + length(key) + 3)
            if (substr(text, 1, 1) == "\"") { text = substr(text, 2); sub(/".*/, "", text) } else sub(/[,}].*/, "", text)
            return text
        }
        {
            id = get("mode") " " get("model") " " get("batch") " " get("dtype")
            kind = get("peer") == "pytorch" ? (get("compiled") == "true" ? "compiled" : "torch") : "hearth"
            speed = get("images_per_s")
            if (speed != "") value[kind, id] = sprintf(speed + 0 < 100 ? "%.1f" : "%.0f", speed)
            else if (get("failed") != "") value[kind, id] = "failed"
            else if (get("skipped") != "") value[kind, id] = "skipped"
        }
        function cell(id,  text) {
            text = value["hearth", id] == "" ? "-" : value["hearth", id]
            if (value["torch", id] != "") text = text " (" value["torch", id] (value["compiled", id] != "" ? ", " value["compiled", id] : "") ")"
            return text
        }
        END {
            b = split(batches, batch, " "); d = split(dtypes, dtype, " "); n = split(networks, network, " ")
            head = "| network | batch |"; rule = "|---|---|"
            for (k = 1; k <= d; k++) { head = head " train " dtype[k] " | infer " dtype[k] " |"; rule = rule "---|---|" }
            print head; print rule
            for (i = 1; i <= n; i++) for (j = 1; j <= b; j++) {
                line = "| " network[i] " | " batch[j] " |"
                for (k = 1; k <= d; k++)
                    line = line " " cell("train " network[i] " " batch[j] " " dtype[k]) " | " \
                        cell("infer " network[i] " " batch[j] " " dtype[k]) " |"
                print line
            }
        }' "$out/rows.jsonl"
    echo
    grep -a '"failed":' "$out/rows.jsonl" | while IFS= read -r line; do
        printf -- '- %s of %s, %s images, %s failed: %s\n' "$(printf '%s' "$line" | field mode)" \
            "$(printf '%s' "$line" | field model)" "$(printf '%s' "$line" | field batch)" \
            "$(printf '%s' "$line" | field dtype)" "$(printf '%s' "$line" | sed 's/.*"failed":"\(.*\)"}$/\1/; s/\\"/"/g')"
    done
} >"$out/gpu-check.md"
cat "$out/gpu-check.md"
echo "$passed steps passed, $bad failed: $out/gpu-check.md, $out/gpu-check.json" >&2
[ "$bad" = 0 ]
