"""The Lua scripts of the Redis registry. Redis runs each as one step that nothing else comes between.

KEYS, all under the prefix `smn:{<first 16 hex of the fingerprint>}:`, which puts them in one cluster slot:
    1 masks     hash   name -> record, JSON: {"current", "versions": [{"version","digest","bytes","uploaded","needs"}]}
    2 cascades  hash   the same; `uploaded` is Unix seconds, `needs` digests with spaces between
    3 last      hash   `<kind>:<name>` -> its last version number; stays when the name is deleted
    4 refs      hash   `<kind>:<digest>` -> versions that hold it; `needs:<digest>` -> cascade versions that need it
    5 blobs     zset   digest -> Unix seconds when it was last uploaded or lost a version
    6 changed   string id of the last change
    7 changes   stream `<id>-0` -> after (the id before it), kind, name; about the last 10,000
    8 blob:<digest>    the bytes, where the script concerns a blob
Ids are server time in microseconds, or one more than the last where the clock stands or goes back: they rise, even
after a restart that lost the last changes or a FLUSHALL, and `after` shows a follower that it missed something.
Answers of scripts that write are lists whose first item is a word. When its memory is full, Redis decides by a script's
first write whether it may go on: that one needs memory in an upload and none in a deletion, so none stops half-way.
"""

from __future__ import annotations

_COMMON = """
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

local function count_needs(version, by)
  for digest in string.gmatch(version.needs, '%S+') do count('needs:' .. digest, by) end
end
"""

SNAPSHOT = (
    _COMMON
    + """
-- Atomic: all records together with the id of the last change in them.
return {changed(), redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2])}
"""
)

READ = (
    _COMMON
    + """
-- Atomic: the records of some names (ARGV: kind, name, ...; false if absent) with the id of the last change in them.
local found = {changed()}
for i = 1, #ARGV, 2 do found[#found + 1] = redis.call('HGET', plane(ARGV[i]), ARGV[i + 1]) end
return found
"""
)

STORE = (
    _COMMON
    + """
-- Atomic: a blob with its time (ARGV: digest, bytes), so that a collection finds both or neither.
redis.call('SET', KEYS[8], ARGV[2])
redis.call('ZADD', KEYS[5], seconds(), ARGV[1])
return {'stored'}
"""
)

PUBLISH = (
    _COMMON
    + """
-- Atomic: guards, references, version number, record, counts, change. ARGV: dry, kind, name, digest, bytes, needs,
-- if_match, if_absent, data or ''. dry = '1' only checks the guards and references; data is stored if the blob is gone.
local dry, kind, name, digest, bytes, needs, if_match, if_absent, data = unpack(ARGV)
local record, text = load(kind, name)
local current = record and find(record, record.current)
if if_absent == '1' and record then return {'exists', current.digest} end
if if_match ~= '' and (not record or current.digest ~= if_match) then
  return {'differs', record and current.digest or ''}
end
local missing = {'missing'}
for needed in string.gmatch(needs, '%S+') do
  if redis.call('HEXISTS', KEYS[4], 'masks:' .. needed) == 0 then missing[#missing + 1] = needed end
end
if #missing > 1 then return missing end
if dry == '1' then return {'allowed'} end
if redis.call('EXISTS', KEYS[8]) == 0 then
  if data == '' then return {'collected'} end
  redis.call('SET', KEYS[8], data)
  redis.call('ZADD', KEYS[5], seconds(), digest)
end
if record and current.digest == digest then return {'same', changed(), text} end
local number = redis.call('HINCRBY', KEYS[3], kind .. ':' .. name, 1)
local version = {version = number, digest = digest, bytes = tonumber(bytes), uploaded = seconds(), needs = needs}
record = record or {versions = {}}
record.versions[#record.versions + 1] = version
record.current = number
text = cjson.encode(record)
redis.call('HSET', plane(kind), name, text)
count(kind .. ':' .. digest, 1)
count_needs(version, 1)
return {'new', change(kind, name), text}
"""
)

SET_CURRENT = (
    _COMMON
    + """
-- Atomic: is the version there, make it current, change. ARGV: kind, name, version.
local kind, name, number = ARGV[1], ARGV[2], tonumber(ARGV[3])
local record, text = load(kind, name)
if not record then return {'absent'} end
if not find(record, number) then return {'unversioned', changed(), text} end
if record.current == number then return {'same', changed(), text} end
record.current = number
text = cjson.encode(record)
redis.call('HSET', plane(kind), name, text)
return {'new', change(kind, name), text}
"""
)

DELETE = (
    _COMMON
    + """
-- Atomic: may it go (not the current version alone, nothing that a cascade needs and no other mask holds), then the
-- versions, counts, change. ARGV: kind, name, version or '' for all.
local kind, name, number = ARGV[1], ARGV[2], tonumber(ARGV[3])
local record, text = load(kind, name)
if not record then return {'absent'} end
if number and not find(record, number) then return {'unversioned', changed(), text} end
if number == record.current then return {'current'} end
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
  local needed, lost = {'needed'}, false
  for digest, n in pairs(left) do
    left[digest] = redis.call('HEXISTS', KEYS[4], 'needs:' .. digest) == 1
      and tonumber(redis.call('HGET', KEYS[4], 'masks:' .. digest)) <= n
    lost = lost or left[digest]
  end
  if lost then
    local cascades = redis.call('HGETALL', KEYS[2])
    for i = 1, #cascades, 2 do
      local uses = false
      for _, version in ipairs(cjson.decode(cascades[i + 1]).versions) do
        for digest in string.gmatch(version.needs, '%S+') do uses = uses or left[digest] end
      end
      if uses then needed[#needed + 1] = cascades[i] end
    end
    return needed
  end
end
redis.call('HDEL', plane(kind), name)
text = ''
if #kept > 0 then
  record.versions = kept
  text = cjson.encode(record)
  redis.call('HSET', plane(kind), name, text)
end
for _, version in ipairs(gone) do
  count(kind .. ':' .. version.digest, -1)
  count_needs(version, -1)
  redis.call('ZADD', KEYS[5], 'XX', seconds(), version.digest)
end
return {'new', change(kind, name), text}
"""
)

COLLECTABLE = (
    _COMMON
    + """
-- Atomic: which blobs no version holds and are older than the grace period (ARGV: seconds).
local found = {}
for _, digest in ipairs(redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', seconds() - tonumber(ARGV[1]))) do
  if not held(digest) then found[#found + 1] = digest end
end
return found
"""
)

COLLECT = (
    _COMMON
    + """
-- Atomic: whether one blob may still go (as above), and its bytes and time. ARGV: digest, grace seconds.
local time = redis.call('ZSCORE', KEYS[5], ARGV[1])
if not time or tonumber(time) > seconds() - tonumber(ARGV[2]) or held(ARGV[1]) then return {'kept'} end
redis.call('DEL', KEYS[8])
redis.call('ZREM', KEYS[5], ARGV[1])
return {'gone'}
"""
)
