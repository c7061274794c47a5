"""The Lua scripts of the Redis registry. Redis runs each as one step that nothing else comes between.

KEYS, all under the prefix `smn:{<first 16 hex of the fingerprint>}:`, which puts them in one cluster slot:
    1 masks     hash   name -> record (record.py), JSON; `uploaded` is Unix seconds, `needs` digests with spaces between
    2 cascades  hash   the same
    3 last      hash   `<kind>:<name>` -> its last version number; stays when the name is deleted
    4 refs      hash   `<kind>:<digest>` -> versions that have it; `needs:<digest>` -> versions that are made of it;
                       `holds:<name>@<version>` -> versions that hold this version of a mask
    5 blobs     zset   digest -> Unix seconds when it was last uploaded or lost a version
    6 changed   string id of the last change
    7 changes   stream `<id>-0` -> after (the id before it), kind, name; about the last 10,000
    8 epoch     string 16 hex digits, made with the registry
    9 servers   zset   `<record format>:<random>` of every server that runs -> Unix seconds when it counts as gone
    10 blob:<digest>   the bytes, where the script concerns a blob
Ids are server time in microseconds, or one more than the last where the clock stands or goes back: they rise, even
after a restart that lost the last changes or a FLUSHALL, and `after` shows a follower that it missed something.
Answers of scripts that write are lists whose first item is a word. When its memory is full, Redis decides by a script's
first write whether it may go on: that one needs memory in an upload and none in a deletion, so none stops half-way.

A server of format 1 has scripts of its own, which keep what they do not know in a record and count `needs` alone. So
`needs` is counted for every version, and what `holds` counts is looked up in the records before it refuses anything.
"""

from __future__ import annotations

from hashlib import sha1
from typing import Any

from redis import exceptions

COMMON = """
local FORMAT = 2
local function seconds() return tonumber(redis.call('TIME')[1]) end

local function plane(kind) if kind == 'masks' then return KEYS[1] end return KEYS[2] end

local function load(kind, name)
  local text = redis.call('HGET', plane(kind), name)
  return text and cjson.decode(text) or nil, text
end

local function find(record, number)
  for _, version in ipairs(record.versions) do
    if version.version == number then return version end
  end
end

local function changed() return redis.call('GET', KEYS[6]) or '0' end

local function change(kind, name)
  local before, time = changed(), redis.call('TIME')
  local id = string.format('%.0f', math.max(tonumber(before) + 1, tonumber(time[1]) * 1e6 + tonumber(time[2])))
  redis.call('SET', KEYS[6], id)
  redis.call('XADD', KEYS[7], 'MAXLEN', '~', 10000, id .. '-0', 'after', before, 'kind', kind, 'name', name)
  return id
end

local function count(field, by)
  if redis.call('HINCRBY', KEYS[4], field, by) <= 0 then redis.call('HDEL', KEYS[4], field) end
end

local function held(digest)
  return redis.call('HEXISTS', KEYS[4], 'masks:' .. digest) + redis.call('HEXISTS', KEYS[4], 'cascades:' .. digest) > 0
end

local function facts(record, number) return record.facts and record.facts[string.format('%d', number)] end

local function holds(record, number)
  local found = facts(record, number)
  return found and found.holds or {}
end

local function count_needs(record, version, by)
  for digest in string.gmatch(version.needs, '%S+') do count('needs:' .. digest, by) end
  for _, hold in ipairs(holds(record, version.version)) do
    count(string.format('holds:%s@%d', hold.name, hold.version), by)
  end
end

-- The newest record format that every server which runs can read.
local function oldest()
  local found = FORMAT
  for _, server in ipairs(redis.call('ZRANGEBYSCORE', KEYS[9], seconds(), '+inf')) do
    found = math.min(found, tonumber(string.match(server, '^%d+')) or found)
  end
  return found
end

-- The record as text: in the newest format that all can read, without facts and aliases of versions that are gone.
local function text_of(record)
  if oldest() >= 2 or (record.format or 1) >= 2 then
    local kept, aliases = {}, {}
    for _, version in ipairs(record.versions) do
      kept[string.format('%d', version.version)] = facts(record, version.version)
    end
    for alias, number in pairs(record.aliases or {}) do
      if find(record, number) then aliases[alias] = number end
    end
    record.facts, record.aliases, record.format = kept, aliases, 2
    record.epoch = redis.call('GET', KEYS[8]) or record.epoch or ''
  end
  return cjson.encode(record)
end
"""

READ = (
    COMMON
    + """
-- Atomic: the records of some names (ARGV: kind, name, ...; false if absent) with the id of the last change in them.
local found = {changed()}
for i = 1, #ARGV, 2 do found[#found + 1] = redis.call('HGET', plane(ARGV[i]), ARGV[i + 1]) end
return found
"""
)

STORE = (
    COMMON
    + """
-- Atomic: a blob with its time (ARGV: digest, bytes), so that a collection finds both or neither.
redis.call('SET', KEYS[10], ARGV[2])
redis.call('ZADD', KEYS[5], seconds(), ARGV[1])
return {'stored'}
"""
)

PUBLISH = (
    COMMON
    + """
-- Atomic: guards, references, version number, record, counts, change. ARGV: dry, kind, name, digest, bytes, needs,
-- if_match, if_absent, facts as JSON, a number below the version's, data or ''. dry = '1' only checks the guards and
-- references; data is stored if the blob is gone.
local dry, kind, name, digest, bytes, needs, if_match, if_absent, told, above, data = unpack(ARGV)
local record = load(kind, name)
local current = record and find(record, record.current)
if if_absent == '1' and record then return {'exists', current.digest} end
if if_match ~= '' and (not record or current.digest ~= if_match) then
  return {'differs', record and current.digest or ''}
end
told = cjson.decode(told)
local missing, named = {'missing'}, {}
for _, hold in ipairs(told.holds or {}) do
  local mask = load('masks', hold.name)
  local version = mask and find(mask, hold.version)
  named[hold.digest] = true
  if not version or version.digest ~= hold.digest then missing[#missing + 1] = hold.digest end
end
for needed in string.gmatch(needs, '%S+') do
  if not named[needed] and redis.call('HEXISTS', KEYS[4], 'masks:' .. needed) == 0 then
    missing[#missing + 1] = needed
  end
end
if #missing > 1 then return missing end
if dry == '1' then return {'allowed'} end
if redis.call('EXISTS', KEYS[10]) == 0 then
  if data == '' then return {'collected'} end
  redis.call('SET', KEYS[10], data)
  redis.call('ZADD', KEYS[5], seconds(), digest)
end
if record and current.digest == digest then return {'same', changed(), redis.call('HGET', plane(kind), name)} end
local number = math.max(tonumber(redis.call('HGET', KEYS[3], kind .. ':' .. name) or 0), tonumber(above)) + 1
redis.call('HSET', KEYS[3], kind .. ':' .. name, string.format('%d', number))
local version = {version = number, digest = digest, bytes = tonumber(bytes), uploaded = seconds(), needs = needs}
record = record or {versions = {}}
record.versions[#record.versions + 1] = version
record.current = number
if oldest() >= 2 then
  record.facts = record.facts or {}
  record.facts[string.format('%d', number)] = next(told) and told or nil
end
local text = text_of(record)
redis.call('HSET', plane(kind), name, text)
count(kind .. ':' .. digest, 1)
count_needs(record, version, 1)
return {'new', change(kind, name), text}
"""
)

SET_CURRENT = (
    COMMON
    + """
-- Atomic: is the version there, make it current, change. ARGV: kind, name, version.
local kind, name, number = ARGV[1], ARGV[2], tonumber(ARGV[3])
local record, text = load(kind, name)
if not record then return {'absent'} end
if not find(record, number) then return {'unversioned', changed(), text} end
if record.current == number then return {'same', changed(), text} end
record.current = number
text = text_of(record)
redis.call('HSET', plane(kind), name, text)
return {'new', change(kind, name), text}
"""
)

ALIAS = (
    COMMON
    + """
-- Atomic: an alias of a name means a version from now on, or is gone. ARGV: kind, name, alias, version or ''.
local kind, name, alias, number = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local record, text = load(kind, name)
if not record then return {'absent'} end
record.aliases = record.aliases or {}
local known = record.aliases[alias]
if known and not find(record, known) then known = nil end
if not number and not known then return {'unknown', changed(), text} end
if number and not find(record, number) then return {'unversioned', changed(), text} end
if number and oldest() < 2 then return {'old'} end
if known == number then return {'same', changed(), text} end
record.aliases[alias] = number
text = text_of(record)
redis.call('HSET', plane(kind), name, text)
return {known and 'moved' or 'new', change(kind, name), text}
"""
)

NOTES = (
    COMMON
    + """
-- Atomic: a text beside a version, or none. ARGV: kind, name, version, text or ''.
local kind, name, number, notes = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local record, text = load(kind, name)
if not record then return {'absent'} end
if not find(record, number) then return {'unversioned', changed(), text} end
if oldest() < 2 then return {'old'} end
local key = string.format('%d', number)
record.facts = record.facts or {}
record.facts[key] = record.facts[key] or {}
record.facts[key].notes = notes ~= '' and notes or nil
text = text_of(record)
redis.call('HSET', plane(kind), name, text)
return {'new', change(kind, name), text}
"""
)

DELETE = (
    COMMON
    + """
-- Atomic: may it go (not the current version alone, none under an alias, none that another holds, no digest that one
-- needs and no other mask has), then the versions, counts, change. ARGV: kind, name, version or '' for all.
local kind, name, number = ARGV[1], ARGV[2], tonumber(ARGV[3])
local record, text = load(kind, name)
if not record then return {'absent'} end
local all = cjson.decode(text)
if number and not find(record, number) then return {'unversioned', changed(), text} end
if number == record.current then return {'current'} end
for alias, at in pairs(record.aliases or {}) do
  if number and at == number then return {'aliased', alias} end
end
local gone, kept, left = {}, {}, {}
for _, version in ipairs(record.versions) do
  if not number or version.version == number then
    gone[#gone + 1] = version
    left[version.digest] = (left[version.digest] or 0) + 1
  else
    kept[#kept + 1] = version
  end
end
if kind == 'masks' then
  local needed, going, look = {'needed'}, {}, false
  for _, version in ipairs(gone) do
    going[version.version] = true
    look = look or redis.call('HEXISTS', KEYS[4], string.format('holds:%s@%d', name, version.version)) == 1
  end
  for digest, n in pairs(left) do
    left[digest] = redis.call('HEXISTS', KEYS[4], 'needs:' .. digest) == 1
      and tonumber(redis.call('HGET', KEYS[4], 'masks:' .. digest)) <= n
    look = look or left[digest]
  end
  if look then
    for _, kind_of_user in ipairs({'cascades', 'masks'}) do
      local users = redis.call('HGETALL', plane(kind_of_user))
      for i = 1, #users, 2 do
        local sound, user = pcall(cjson.decode, users[i + 1])
        local uses = false
        for _, version in ipairs(sound and user.versions or {}) do
          if kind_of_user == 'cascades' or users[i] ~= name or not going[version.version] then
            local held_here = holds(user, version.version)
            for _, hold in ipairs(held_here) do uses = uses or (hold.name == name and going[hold.version]) end
            if #held_here == 0 then
              for digest in string.gmatch(version.needs, '%S+') do uses = uses or left[digest] end
            end
          end
        end
        if uses then needed[#needed + 1] = users[i] end
      end
    end
    if #needed > 1 then return needed end
  end
end
redis.call('HDEL', plane(kind), name)
text = ''
if #kept > 0 then
  record.versions = kept
  text = text_of(record)
  redis.call('HSET', plane(kind), name, text)
end
for _, version in ipairs(gone) do
  count(kind .. ':' .. version.digest, -1)
  count_needs(all, version, -1)
  if kind == 'masks' then redis.call('HDEL', KEYS[4], string.format('holds:%s@%d', name, version.version)) end
  redis.call('ZADD', KEYS[5], 'XX', seconds(), version.digest)
end
return {'new', change(kind, name), text}
"""
)

KEYS = ("masks", "cascades", "last", "refs", "blobs", "changed", "changes", "epoch", "servers")


def run(client: Any, prefix: str, script: str, *arguments: object, extra: str | None = None) -> list[Any]:
    """What a script answers; it is sent whole where Redis does not know it yet. `extra` is the tenth key."""
    keys = [prefix + key for key in (*KEYS, *([extra] if extra else []))]
    try:
        return client.evalsha(sha1(script.encode()).hexdigest(), len(keys), *keys, *arguments)
    except exceptions.NoScriptError:
        return client.eval(script, len(keys), *keys, *arguments)
