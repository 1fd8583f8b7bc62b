#!lua name=crossfade
-- version: 2
--
-- The logs of Crossfade in Redis. The gateway loads this library; a backend service may call it too:
--
--   FCALL crossfade_publish 1 'crossfade:{orders:42}' '{"total":9}' 'created' 'order-42-paid'
--
-- The keys of a channel share the hash tag, so that they lie on one node of a Cluster:
--   crossfade:{orders:42}          hash: e = epoch, o = newest offset, k = what retention was told
--   crossfade:{orders:42}:log      stream, the entry at offset 17 has the id 17-0
--   crossfade:{orders:42}:id:ID    where the event with this message id stands
-- The bell, what listeners hear, rings on the channel named like the hash.

-- The hash has to outlive the stream: a log that begins anew at 1 must never look like the old one.
local HEAD_TTL_MS = 30 * 24 * 3600 * 1000
-- Events, their age in ms and the memory for ids in ms, until a gateway has told the channel's own.
local RETENTION = '10000 86400000 120000'
local KEEP = '^(%d+) (%d+) (%d+)$'
-- So many appends share one look for events that are too old.
local TRIM_EVERY = 64

-- Whether this server belongs to a Cluster. Asked once.
local sharded

local function is_sharded()
  if sharded == nil then
    sharded = type(redis.pcall('CLUSTER', 'INFO')) == 'string'
  end
  return sharded
end

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000), time[1] .. '.' .. time[2]
end

local function text(number)
  return string.format('%.0f', number)
end

-- A number nobody drew before, in base 36.
local function draw(key, before)
  local _, instant = now()
  local rest = tonumber(string.sub(redis.sha1hex(key .. ' ' .. instant .. ' ' .. before), 1, 10), 16)
  local digits = ''
  repeat
    local digit = rest % 36
    digits = string.sub('0123456789abcdefghijklmnopqrstuvwxyz', digit + 1, digit + 1) .. digits
    rest = math.floor(rest / 36)
  until rest == 0
  return digits
end

-- A new life of the log. What an old one left behind goes first.
local function begin(key, before)
  local epoch = draw(key, before)
  redis.call('DEL', key .. ':log')
  redis.call('HSET', key, 'e', epoch, 'o', 0)
  return epoch, 0
end

-- Epoch, newest offset and retention.
local function open(key, events, age, dedup)
  local head = redis.call('HMGET', key, 'e', 'o', 'k')
  local epoch, offset, keep = head[1], tonumber(head[2] or 0), head[3]
  if not epoch then
    epoch, offset = begin(key, '')
  end
  local told = events and table.concat({ events, age, dedup }, ' ')
  if told and told ~= keep and string.find(told, KEEP) then
    redis.call('HSET', key, 'k', told)
    keep = told
  end
  events, age, dedup = string.match(keep or RETENTION, KEEP)
  return epoch, offset, events, tonumber(age), tonumber(dedup)
end

local function stay(key, age)
  redis.call('PEXPIRE', key, text(math.max(HEAD_TTL_MS, 2 * age)))
end

-- Lets go of events older than `oldest`. Looks at single entries: events can be large.
local function trim(log, oldest)
  local function older(from)
    local entry = redis.call('XRANGE', log, from, '+', 'COUNT', 1)[1]
    return entry and tonumber(entry[2][2]) < oldest and entry[1]
  end
  local first = older('-')
  if not first then
    return
  end
  first = tonumber(string.match(first, '^%d+'))
  local many = 4 * TRIM_EVERY
  while 1 < many and not older(text(first + many - 1)) do
    many = many / 2
  end
  redis.call('XTRIM', log, 'MINID', text(first + many))
end

local function add(log, offset, events, time, id, name, data)
  local entry = { 'XADD', log, 'MAXLEN', '~', events, text(offset) .. '-0', 't', text(time), 'i', id }
  if name ~= '' then
    entry[#entry + 1] = 'n'
    entry[#entry + 1] = name
  end
  entry[#entry + 1] = 'd'
  entry[#entry + 1] = data
  return redis.pcall(unpack(entry))
end

local function refusal(data, name, id)
  if not data then
    return 'the data is missing: FCALL crossfade_publish 1 KEY DATA [NAME [ID]]'
  end
  if 128 < #name or string.find(name, '%c') then
    return 'an event name has at most 128 bytes and no control characters'
  end
  if name == 'open' or name == 'error' or string.find(name, '^crossfade%.') then
    return 'the event names open, error and crossfade.* are reserved'
  end
  if 128 < #id or string.find(id, '[^\33-\126]') then
    return 'a message id has at most 128 bytes of visible ASCII'
  end
end

-- DATA [NAME [ID [EVENTS AGE_MS DEDUP_MS]]] -> epoch, offset, 1 if the id had been seen.
local function publish(keys, args)
  local key, data, name, id = keys[1], args[1], args[2] or '', args[3] or ''
  local why = refusal(data, name, id)
  if why then
    return redis.error_reply('ERR crossfade: ' .. why)
  end
  local epoch, offset, events, age, dedup = open(key, args[4], args[5], args[6])
  local seen = id ~= '' and 0 < dedup and key .. ':id:' .. id
  if seen then
    -- What was published in another life of the log went with it, and may come again.
    local before = redis.call('GET', seen)
    local life, at = string.match(before or '', '^(%w+)-(%d+)$')
    if life == epoch then
      return { epoch, tonumber(at), 1 }
    end
  end
  local log, time = key .. ':log', now()
  offset = offset + 1
  local name_len = #name
  local said = id ~= '' and id or epoch .. '-' .. text(offset)
  local added = add(log, offset, events, time, said, name, data)
  if type(added) == 'table' and added.err then
    if not string.find(added.err, 'equal or smaller', 1, true) then
      return added
    end
    -- The head is behind its own log: someone restored one of them. Neither can be trusted.
    epoch, offset = begin(key, epoch), 1
    said = id ~= '' and id or epoch .. '-1'
    redis.call('DEL', log)
    added = add(log, offset, events, time, said, name, data)
    if type(added) == 'table' and added.err then
      return added
    end
  end
  redis.call('HSET', key, 'o', text(offset))
  redis.call('PEXPIRE', log, text(age + 1000))
  stay(key, age)
  if offset % TRIM_EVERY == 0 then
    trim(log, time - age)
  end
  local position = epoch .. '-' .. text(offset)
  if seen then
    redis.call('SET', seen, position, 'PX', text(dedup))
  end
  local news = position .. ' ' .. text(time) .. ' ' .. said .. ' ' .. name_len .. ' ' .. name .. data
  redis.call(is_sharded() and 'SPUBLISH' or 'PUBLISH', key, news)
  return { epoch, offset, 0 }
end

-- EVENTS AGE_MS DEDUP_MS [EPOCH OFFSET] -> epoch, newest offset.
-- A log that ends before the position it is said to have begins anew.
local function head(keys, args)
  local key = keys[1]
  local epoch, offset, _, age = open(key, args[1], args[2], args[3])
  if epoch == args[4] and offset < tonumber(args[5]) then
    epoch, offset = begin(key, epoch)
  end
  stay(key, age)
  return { epoch, offset }
end

-- The records of the gateway itself, all under one hash tag:
--   KEY:records   hash: name -> VERSION VALUE
--   KEY:journal   stream of notes: k = name, v = version, t = ms since 1970, n = text
--   KEY:told:PART hash: name -> EXPIRES_MS VALUE, PART being the name up to its first slash

local JOURNAL_NOTES = '10000'

-- NAME EXPECTED VALUE [NOTE] -> 1 and the new version, or 0 and what stands there.
local function put(keys, args)
  local records, name, expected = keys[1] .. ':records', args[1], tonumber(args[2])
  local found = redis.call('HGET', records, name)
  local version = found and tonumber(string.match(found, '^(%d+) ')) or 0
  if version ~= expected then
    return { 0, found or '' }
  end
  version = text(expected + 1)
  local written = redis.pcall('HSET', records, name, version .. ' ' .. args[3])
  if type(written) == 'table' and written.err then
    return written
  end
  if args[4] then
    local note = { 'k', name, 'v', version, 't', text((now())), 'n', args[4] }
    redis.call('XADD', keys[1] .. ':journal', 'MAXLEN', '~', JOURNAL_NOTES, '*', unpack(note))
  end
  return { 1, version }
end

-- NAME VALUE KEEP_MS
local function tell(keys, args)
  local told, time = keys[1] .. ':told:' .. string.match(args[1], '^[^/]*'), now()
  redis.call('HSET', told, args[1], text(time + tonumber(args[3])) .. ' ' .. args[2])
  redis.call('PEXPIRE', told, '86400000')
  -- What has expired goes with the words of whoever still speaks.
  for _, other in ipairs(redis.call('HKEYS', told)) do
    local said = redis.call('HGET', told, other)
    if tonumber(string.match(said, '^(%d+) ')) < time then
      redis.call('HDEL', told, other)
    end
  end
  return 1
end

-- PREFIX -> names and values of what has not expired.
local function told(keys, args)
  local found, time = {}, now()
  local all = redis.call('HGETALL', keys[1] .. ':told:' .. string.match(args[1], '^[^/]*'))
  for at = 1, #all, 2 do
    local expires, value = string.match(all[at + 1], '^(%d+) (.*)$')
    if time < tonumber(expires) then
      found[#found + 1] = all[at]
      found[#found + 1] = value
    end
  end
  return found
end

redis.register_function('crossfade_publish', publish)
redis.register_function('crossfade_head', head)
redis.register_function('crossfade_put', put)
redis.register_function('crossfade_tell', tell)
redis.register_function('crossfade_told', told)
