#!/bin/sh
# Asks a server with curl: vipllava serve --model demo; sh client.sh PICTURE
# With a key: export VIPLLAVA_API_KEY; the header then comes from a file, which other users' `ps` does not show.
set -eu
url=${VIPLLAVA_URL:-http://127.0.0.1:8000}

request() {
  printf '{"model": "demo", "max_tokens": 32, "stream": %s, "messages": [{"role": "user", "content": [
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,%s"},
     "visual_prompts": ["rectangle:0.1,0.1,0.6,0.6:red"]},
    {"type": "text", "text": "What is {mark}?"}]}]}' "$1" "$(base64 <"$2" | tr -d '\n')"
}

ask() {
  printf 'Authorization: Bearer %s' "${VIPLLAVA_API_KEY:-none}" >"$header"
  curl --silent --show-error --no-buffer "$url/v1/chat/completions" \
    -H 'Content-Type: application/json' -H "@$header" --data-binary @-
}

header=$(mktemp)
trap 'rm -f "$header"' EXIT
request false "$1" | ask
echo
request true "$1" | ask
