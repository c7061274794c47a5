"""The Lua scripts that keep the Redis registry in order: its beginning, its servers, what can go. Keys: scripts.py."""

from __future__ import annotations

from service.registry.scripts import COMMON

BEGIN = (
    COMMON
    + """
-- Atomic: the epoch of the registry, made of ARGV[1] where it has none, and the id of the last change.
local epoch = redis.call('GET', KEYS[8])
if not epoch then
  epoch = ARGV[1]
  redis.call('SET', KEYS[8], epoch)
end
return {epoch, changed()}
"""
)

REMEMBER = (
    COMMON
    + """
-- Atomic: numbers that were given out before the registry lost them (ARGV: `<kind>:<name>`, number, ...).
for i = 1, #ARGV, 2 do
  if tonumber(redis.call('HGET', KEYS[3], ARGV[i]) or 0) < tonumber(ARGV[i + 1]) then
    redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1])
  end
end
return {'remembered'}
"""
)

ANNOUNCE = (
    COMMON
    + """
-- Atomic: this server is there (ARGV: member, seconds); those that are gone leave. It shows whether one can write.
redis.call('ZADD', KEYS[9], seconds() + tonumber(ARGV[2]), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[9], '-inf', seconds() - 1)
return {'announced'}
"""
)

COLLECTABLE = (
    COMMON
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
    COMMON
    + """
-- Atomic: whether one blob may still go (as above), and its bytes and time. ARGV: digest, grace seconds.
local time = redis.call('ZSCORE', KEYS[5], ARGV[1])
if not time or tonumber(time) > seconds() - tonumber(ARGV[2]) or held(ARGV[1]) then return {'kept'} end
redis.call('DEL', KEYS[10])
redis.call('ZREM', KEYS[5], ARGV[1])
return {'gone'}
"""
)

RECOUNT = (
    COMMON
    + """
-- Atomic: puts records that cannot be read aside (KEYS[10], a hash: `<kind>:<name>` -> text), counts references anew.
-- A name that was put aside is deleted; its number stays. Returns `<kind>:<name>` of each.
local aside = {}
redis.call('DEL', KEYS[4])
for _, kind in ipairs({'masks', 'cascades'}) do
  local all = redis.call('HGETALL', plane(kind))
  for i = 1, #all, 2 do
    local name, text = all[i], all[i + 1]
    local sound = pcall(function()
      local record = cjson.decode(text)
      assert(find(record, record.current))
      for _, version in ipairs(record.versions) do
        assert(version.digest and version.bytes and version.uploaded and version.needs)
      end
    end)
    if sound then
      local record = cjson.decode(text)
      for _, version in ipairs(record.versions) do
        count(kind .. ':' .. version.digest, 1)
        count_needs(record, version, 1)
      end
    else
      redis.call('HSET', KEYS[10], kind .. ':' .. name, text)
      redis.call('HDEL', plane(kind), name)
      change(kind, name)
      aside[#aside + 1] = kind .. ':' .. name
    end
  end
end
return aside
"""
)

PUT_BACK = (
    COMMON
    + """
-- Atomic: a record that a backup has, unless the name is there. ARGV: kind, name, record or '', last number.
-- A server may know a number of a name that is not there: the larger one stays.
local kind, name, text, last = unpack(ARGV)
if redis.call('HEXISTS', plane(kind), name) == 1 then return {'there'} end
local known = tonumber(redis.call('HGET', KEYS[3], kind .. ':' .. name) or 0)
redis.call('HSET', KEYS[3], kind .. ':' .. name, string.format('%d', math.max(known, tonumber(last))))
if text == '' then return {'deleted'} end
local record = cjson.decode(text)
text = text_of(record)
redis.call('HSET', plane(kind), name, text)
for _, version in ipairs(record.versions) do
  count(kind .. ':' .. version.digest, 1)
  count_needs(record, version, 1)
end
return {'new', change(kind, name), text}
"""
)

PUT_OVER = (
    COMMON
    + """
-- Atomic: a record in place of another. ARGV: kind, name, record, last number; the record and last number before.
local kind, name, text, last, expected, last_before = unpack(ARGV)

-- What can change in a record, under one key each: versions with their files and notes, the current one, aliases.
local function parts(record)
  local found = {current = record.current}
  for _, version in ipairs(record.versions) do
    local number = string.format('%d', version.version)
    found['digest ' .. number] = version.digest
    found['notes ' .. number] = (facts(record, version.version) or {}).notes or ''
  end
  for alias, number in pairs(record.aliases or {}) do
    if find(record, number) then found['alias ' .. alias] = number end
  end
  return found
end

local before = load(kind, name)
local here, there = parts(before or {current = 0, versions = {}}), parts(cjson.decode(expected))
local same = tonumber(redis.call('HGET', KEYS[3], kind .. ':' .. name) or 0) == tonumber(last_before)
for key, value in pairs(here) do same = same and there[key] == value end
for key in pairs(there) do same = same and here[key] ~= nil end
if not same then return {'changed'} end
local record = cjson.decode(text)
text = text_of(record)
redis.call('HSET', plane(kind), name, text)
redis.call('HSET', KEYS[3], kind .. ':' .. name, last)
for _, version in ipairs(record.versions) do
  count(kind .. ':' .. version.digest, 1)
  count_needs(record, version, 1)
end
for _, version in ipairs(before and before.versions or {}) do
  count(kind .. ':' .. version.digest, -1)
  count_needs(before, version, -1)
end
return {'new', change(kind, name), text}
"""
)
