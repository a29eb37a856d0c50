-- Appends events to logs and rings the doorbell of each: one atomic step, so
-- that the order in a log is the order on its channel.
--
-- KEYS  the logs. Beside each, in its slot, there may be markers, which remember for a
--       while the ids of events that were published again or with Idempotent, and a flag
--       that says so. They are not declared: while a cluster moves a slot, a script with
--       several keys does not run when one of them is not there.
-- ARGV  [1] number of logs  [2] lifetime of a marker in ms
--       [3] the command that publishes: PUBLISH or SPUBLISH
--       for each log:   channel, number of events to keep (0: all),
--                       lifetime after the last append in ms (0: for ever),
--                       epoch that the caller saw last ('': none)
--       then groups:    number of a log, n, and
--          n > 0: that many events, each as its JSON without cursor
--          n = 0: one event, '' for the same as before, and how: '' or
--                 'id|look|since|marker|also' with
--          look    how many of the newest entries to search for the id
--          since   a seq; entries of the caller's epoch up to it are not searched
--          marker  1 to leave a marker, or ''
--          also    where an earlier call has appended the event, or ''
--       Markers are looked at for every event: it may be a first attempt that comes
--       late, when the event was published again already.
--       An event that goes to several logs comes in as many groups, one behind the
--       other; every entry but the first notes in its field 'also' where those
--       before it are: '<channel>@<position>', with blanks between.
-- reply for each group a string: '+<position>' appended, and for n events that those
--       behind the first have the numbers behind it; '=<position>' was there already;
--       '~<error>' appended but then something failed; '!<error>' not appended. Where the
--       events of a group fare differently, a list of these.
-- Nothing here raises an error once something may be written: the caller takes one
-- for "it did not run".
local logs, markerTTL, publish = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local channels, keeps, epochs, touched, marked, readonly = {}, {}, {}, {}, {}, nil

local function lifetime(log) return ARGV[6 + (log - 1) * 4] end
local function marker(log, id) return 'eventbus:id:{' .. channels[log] .. '}:' .. id end
for log = 1, logs do
  local at = 4 + (log - 1) * 4
  channels[log], keeps[log] = ARGV[at], ARGV[at + 1]
  if keeps[log] == '0' then keeps[log] = '9007199254740991' end
  if ARGV[at + 3] ~= '' then epochs[log] = ARGV[at + 3] end
  marked[log] = redis.pcall('EXISTS', marker(log, '')) == 1
end

local function xadd(log, id, event, also)
  if also == '' then
    return redis.pcall('XADD', KEYS[log], 'NOMKSTREAM', 'MAXLEN', '~', keeps[log], id, 'event', event)
  end
  return redis.pcall('XADD', KEYS[log], 'NOMKSTREAM', 'MAXLEN', '~', keeps[log], id, 'event', event, 'also', also)
end

-- The epoch of the log as it is, nil when there is no log; or nil and an error.
local function epochOf(log)
  if redis.pcall('EXISTS', KEYS[log]) == 0 then return nil end
  local info = redis.pcall('XINFO', 'STREAM', KEYS[log])
  if info.err then
    if string.find(info.err, 'no such key', 1, true) then return nil end
    return nil, info.err
  end
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return string.match(info[i + 1], '^%d+') end
  end
end

-- The position, or nil and an error.
local function append(log, event, also)
  if epochs[log] then
    local id = xadd(log, epochs[log] .. '-*', event, also)
    if type(id) == 'string' and string.sub(id, -2) ~= '-0' then return id end
    if type(id) == 'string' then
      -- The caller's epoch is newer than the log's: it comes from another server, that
      -- was master before. Logs begin with 1, so a 0 tells. Take it back.
      redis.pcall('XDEL', KEYS[log], id)
      local top = redis.pcall('XREVRANGE', KEYS[log], '+', '-', 'COUNT', 1)[1]
      local reset = top and redis.pcall('XSETID', KEYS[log], top[1])
      -- A log of which nothing is left, or a server without XSETID: begin anew.
      if not reset or reset.err then redis.pcall('DEL', KEYS[log]) end
      epochs[log] = nil
    elseif id and id.err and not string.find(id.err, 'equal or smaller', 1, true) then
      return nil, id.err
    end
  end
  local epoch, err = epochOf(log)
  if err then return nil, err end
  local id
  if epoch then
    id = xadd(log, epoch .. '-*', event, also)
  else
    local t = redis.call('TIME')
    epoch = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
    local args = {'XADD', KEYS[log], epoch .. '-1', 'event', event}
    if also ~= '' then args[6], args[7] = 'also', also end
    id = redis.pcall(unpack(args))
  end
  if type(id) ~= 'string' then return nil, id and id.err or 'the log went away' end
  epochs[log] = epoch
  return id
end

-- The position that a marker has, or nil. A marker outlives a log that was lost: then the
-- event is not there.
local function markerOf(log, key)
  local there = redis.pcall('GET', key)
  if type(there) == 'string' and string.match(there, '^%d+') == epochOf(log) then return there end
end

-- The position of the event with this id among the newest entries, or nil.
local function find(log, id, look, since)
  local want, from = '{"id":"' .. id .. '"', '+'
  since = epochs[log] and tonumber(since) or -1
  while look > 0 do
    local page = redis.pcall('XREVRANGE', KEYS[log], from, '-', 'COUNT', math.min(look, 100))
    if page.err or #page == 0 then return nil end
    for _, entry in ipairs(page) do
      if string.sub(entry[2][2] or '', 1, #want) == want then return entry[1] end
      local epoch, seq = string.match(entry[1], '^(%d+)-(%d+)$')
      if epoch == epochs[log] and tonumber(seq) <= since then return nil end
    end
    look = look - #page
    from = '(' .. page[#page][1]
  end
end

-- Publishes what was appended. The reply for it.
local function ring(log, event, id)
  local rung = redis.pcall(publish, channels[log], string.sub(event, 1, -2) .. ',"cursor":"' .. id .. '"}')
  touched[log] = true
  if type(rung) == 'table' and rung.err then return '~' .. rung.err end
  return '+' .. id
end

-- The reply for an event, and where it is, if it is there.
local function one(log, event, how, also)
  local there, own
  if marked[log] then
    there = markerOf(log, marker(log, string.match(event, '^{"id":"([^"]*)"') or ''))
  end
  if how ~= '' then
    local id, look, since, mark = string.match(how, '^([^|]*)|(%d+)|(%d*)|(%d*)|')
    if mark ~= '' then own = marker(log, id) end
    if not there then there = find(log, id, tonumber(look), since) end
  end
  local reply
  if there then
    reply = '=' .. there
  else
    local id, err = append(log, event, also)
    if not id then
      if string.find(err, '^READONLY') then readonly = err end
      return '!' .. err, nil
    end
    there, reply = id, ring(log, event, id)
  end
  if own then
    local set = redis.pcall('SET', own, there, 'PX', markerTTL)
    if not set.err then set = redis.pcall('SET', marker(log, ''), '', 'PX', markerTTL) end
    if set.err then reply = '~' .. set.err end
    marked[log] = true
  end
  return reply, there
end

local replies, logOf, event, also = {}, {}, '', ''
local a = 4 + logs * 4
while a <= #ARGV do
  local log, n = tonumber(ARGV[a]), tonumber(ARGV[a + 1])
  local reply
  if n == 0 then
    local how = ARGV[a + 3]
    if ARGV[a + 2] ~= '' then event, also = ARGV[a + 2], '' end
    if also == '' then also = string.match(how, '^[^|]*|%d+|%d*|%d*|(.*)$') or '' end
    local there
    reply, there = one(log, event, how, also)
    if there then also = also .. (also == '' and '' or ' ') .. channels[log] .. '@' .. there end
    a = a + 4
  else
    local all, alike, there = {}, true, nil
    for i = 1, n do
      event = ARGV[a + 1 + i]
      all[i], there = one(log, event, '', '')
      alike = alike and string.byte(all[i]) == 43 -- '+'
    end
    also = there and channels[log] .. '@' .. there or ''
    alike = alike and string.match(all[1], '^.%d+') == string.match(all[n], '^.%d+')
    reply = alike and all[1] or all
    a = a + 2 + n
  end
  if readonly then
    -- Nothing was written. As an error of the whole call, it makes the client drop its
    -- connection to what was a master once.
    return redis.error_reply(readonly)
  end
  replies[#replies + 1] = reply
  logOf[#replies] = log
end
for log in pairs(touched) do
  local set
  if lifetime(log) == '0' then
    set = redis.pcall('PERSIST', KEYS[log])
  else
    set = redis.pcall('PEXPIRE', KEYS[log], lifetime(log))
  end
  if type(set) == 'table' and set.err then
    local function late(reply) return string.byte(reply) == 43 and '~' .. set.err or reply end
    for i, reply in ipairs(replies) do
      if logOf[i] == log and type(reply) == 'string' then
        replies[i] = late(reply)
      elseif logOf[i] == log then
        for j = 1, #reply do reply[j] = late(reply[j]) end
      end
    end
  end
end
return replies
