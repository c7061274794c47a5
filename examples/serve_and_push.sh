#!/bin/sh
# Serve a backbone, push a mask to it while it runs, ask for an embedding.
#
#     PATH=.venv/bin:$PATH examples/serve_and_push.sh /tmp/smn-example        # after train_on_a_folder.py
set -eu
folder=$1
port=${2:-8000}
export SMN_SERVER=http://127.0.0.1:$port # where `smn push` and `smn list` look

# On loopback no key is asked for; on any other address the server wants SMN_ADMIN_KEYS.
smn serve --backbone test_vit --weights "$folder/backbone.safetensors" --image-size 32 --device cpu \
  --registry "$folder/registry" --port "$port" > "$folder/server.log" 2>&1 &
server=$!
trap 'kill "$server" 2> /dev/null; wait "$server" || true' EXIT # SIGTERM: it answers what it has begun, then ends

# /readyz says when requests are taken, and while they are not, why.
until curl -fsS "$SMN_SERVER/readyz" > /dev/null 2>&1; do
  kill -0 "$server" || { cat "$folder/server.log" >&2; exit 1; }
  sleep 0.2
done

# A push is a new version of a name; requests that are in work finish on the version that they began with.
smn push "$folder/photos.smn" --name photos
smn list

# The digest in the answer says which bytes made the embedding, whatever the name means tomorrow.
curl -fsS -F "image=@$folder/photos/000.png" "$SMN_SERVER/embed?mask=photos&dimensions=4"
echo
