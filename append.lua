-- Appends events to logs and rings the doorbell of each: one atomic step, so
-- that the order in a log is the order on its channel.
--
-- KEYS  the logs. Beside each, in its slot, there may be markers, which remember for a
--       while the ids of events that were published again or with Idempotent, and a flag
--       that says so. They are not declared: while a cluster moves a slot, a script with
--       several keys does not run when one of them is not there.
-- ARGV  [1] lifetime of a marker in ms  [2] the command that publishes: PUBLISH or SPUBLISH
--       for each log:   channel, number of events to keep (0: all),
--                       lifetime after the last append in ms (0: for ever),
--                       epoch that the caller saw last ('': none),
--                       n, and that many events, each as its JSON without cursor
--       then events that need more than that: number of a log, event, '' for the same as
--       before, and how: '' or 'id|look|since|marker|also' with
--          look    how many of the newest entries to search for the id
--          since   a seq; entries of the caller's epoch up to it need no search
--          marker  '1' to leave a marker; '?' to append nothing, and leave one where
--                  the event is; or ''
--          also    where other calls have found the event or appended it, or ''
--       Markers are looked at for every event: it may be a first attempt that comes
--       late, when the event was published again already.
--       An event that goes to several logs comes as many times, one behind the other.
--       It is looked for in all of them before it is appended to any. An entry notes in
--       its field 'also' where the event was before: '<channel>@<position>', with blanks
--       between. Its message has a blank before "cursor" if some of that was another
--       call's doing: then the messages just before it do not tell.
-- reply for each log with n > 0, then for each of the other events, a string:
--       '+<position>' appended, and for n events that those behind the first have the
--       numbers behind it; '=<position> <also>' was there already, with what its entry
--       notes; '-' was not, and nothing was to be appended; '~<position> <error>' is
--       there, but something failed ('~ <error>' for n events: some may not be there);
--       '!<error>' not appended. Where n events fare differently, a list.
-- Nothing here raises an error once something may be written: the caller takes one
-- for "it did not run".
local pcall, sub, publish = redis.pcall, string.sub, ARGV[2]
local replies, left, a = {}, nil, 3

-- The short way, for logs that are as the caller knows them, or begin. It makes nothing that it does
-- not need: half of what an event costs Redis is the script, not the commands.
for log = 1, #KEYS do
  local key, channel, keep, life, epoch, n = KEYS[log], ARGV[a], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], tonumber(ARGV[a + 4])
  a = a + 5
  if n > 0 then
    local reply, stale, first
    if pcall('EXISTS', 'eventbus:id:{' .. channel .. '}:') == 0 and (epoch ~= '' or pcall('EXISTS', key) == 0) then
      local id = epoch .. '-*'
      for i = 1, n do
        local event, at = ARGV[a + i - 1], nil
        if epoch == '' then -- the log begins
          local t = redis.call('TIME')
          epoch = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
          id = epoch .. '-*'
          at = pcall('XADD', key, epoch .. '-1', 'event', event)
        elseif i == n and keep ~= '0' then
          at = pcall('XADD', key, 'NOMKSTREAM', 'MAXLEN', '~', keep, id, 'event', event)
        else
          at = pcall('XADD', key, 'NOMKSTREAM', id, 'event', event)
        end
        if type(at) ~= 'string' then
          if reply then first, reply = '', '~ ' .. (at and at.err or 'the log went away') end
          break
        end
        if i == 1 then
          if sub(at, -2) == '-0' then stale = at break end
          first, reply = at, '+' .. at
        end
        local rung = pcall(publish, channel, sub(event, 1, -2) .. ',"cursor":"' .. at .. '"}')
        if type(rung) == 'table' then reply = '~' .. first .. ' ' .. rung.err end
      end
    end
    if reply then
      local set
      if life == '0' then set = pcall('PERSIST', key) else set = pcall('PEXPIRE', key, life) end
      if type(set) == 'table' then reply = '~' .. first .. ' ' .. set.err end
    else
      left = left or {}
      left[#left + 1] = {log = log, reply = #replies + 1, at = a, n = n, stale = stale}
    end
    replies[#replies + 1] = reply or ''
  end
  a = a + n
end
if not left and a > #ARGV then return replies end

-- The long way, for what is left.
local channels, keeps, lives, callers, epochs, marked, touched, logOf, readonly = {}, {}, {}, {}, {}, {}, {}, {}, nil
local function marker(log, id) return 'eventbus:id:{' .. channels[log] .. '}:' .. id end
do
  local at = 3
  for log = 1, #KEYS do
    channels[log], keeps[log], lives[log] = ARGV[at], ARGV[at + 1], ARGV[at + 2]
    if keeps[log] == '0' then keeps[log] = '9007199254740991' end
    callers[log] = ARGV[at + 3] -- whose 'since' is of this epoch, whatever the log's is
    if callers[log] ~= '' then epochs[log] = callers[log] end
    marked[log] = pcall('EXISTS', marker(log, '')) == 1
    at = at + 5 + tonumber(ARGV[at + 4])
  end
end

local function xadd(log, id, event, also)
  if also == '' then
    return pcall('XADD', KEYS[log], 'NOMKSTREAM', 'MAXLEN', '~', keeps[log], id, 'event', event)
  end
  return pcall('XADD', KEYS[log], 'NOMKSTREAM', 'MAXLEN', '~', keeps[log], id, 'event', event, 'also', also)
end

-- The epoch of the log as it is, nil when there is no log; or nil and an error.
local function epochOf(log)
  if pcall('EXISTS', KEYS[log]) == 0 then return nil end
  local info = pcall('XINFO', 'STREAM', KEYS[log])
  if info.err then
    if string.find(info.err, 'no such key', 1, true) then return nil end
    return nil, info.err
  end
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return string.match(info[i + 1], '^%d+') end
  end
end

-- Logs begin with 1, so a 0 tells that the caller's epoch is newer than the log's: it
-- comes from another server, that was master before. Takes the entry back.
local function takeBack(log, id)
  pcall('XDEL', KEYS[log], id)
  local top = pcall('XREVRANGE', KEYS[log], '+', '-', 'COUNT', 1)[1]
  local reset = top and pcall('XSETID', KEYS[log], top[1])
  -- A log of which nothing is left, or a server without XSETID: begin anew.
  if not reset or reset.err then pcall('DEL', KEYS[log]) end
  epochs[log] = nil
end

-- The position, or nil and an error.
local function append(log, event, also)
  if epochs[log] then
    local id = xadd(log, epochs[log] .. '-*', event, also)
    if type(id) == 'string' and sub(id, -2) ~= '-0' then return id end
    if type(id) == 'string' then
      takeBack(log, id)
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
    id = pcall(unpack(args))
  end
  if type(id) ~= 'string' then return nil, id and id.err or 'the log went away' end
  epochs[log] = epoch
  return id
end

-- What an entry notes.
local function noted(entry)
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'also' then return entry[2][i + 1] end
  end
  return ''
end

-- The position that a marker has and what the entry there notes, or nil. A marker outlives a
-- log that was lost: then the event is not there.
local function markerOf(log, key)
  local marked = pcall('GET', key)
  if type(marked) ~= 'string' or string.match(marked, '^%d+') ~= epochOf(log) then return nil end
  return string.match(marked, '^([^ ]*) ?(.*)$')
end

-- The same for the event with this id among the newest entries.
local function find(log, id, look, since)
  local want, from = '{"id":"' .. id .. '"', '+'
  since = tonumber(since) or -1
  while look > 0 do
    local page = pcall('XREVRANGE', KEYS[log], from, '-', 'COUNT', math.min(look, 100))
    if page.err or #page == 0 then return nil end
    for _, entry in ipairs(page) do
      if sub(entry[2][2] or '', 1, #want) == want then return entry[1], noted(entry) end
    end
    local oldest = page[#page][1]
    local epoch, seq = string.match(oldest, '^(%d+)-(%d+)$')
    if epoch == callers[log] and tonumber(seq) <= since then return nil end
    look, from = look - #page, '(' .. oldest
  end
end

-- Adds to notes those that are not among them.
local function join(notes, more)
  for note in string.gmatch(more, '[^ ]+') do
    if not string.find(' ' .. notes .. ' ', ' ' .. note .. ' ', 1, true) then
      notes = notes .. (notes == '' and '' or ' ') .. note
    end
  end
  return notes
end

-- Publishes what was appended. The reply for it.
local function ring(log, event, id, told)
  local rung = pcall(publish, channels[log], sub(event, 1, -2) .. (told and ',' or ', ') .. '"cursor":"' .. id .. '"}')
  touched[log] = true
  if type(rung) == 'table' and rung.err then return '~' .. id .. ' ' .. rung.err end
  return '+' .. id
end

-- The replies for an event that is to be in some logs, each with its log and how.
local function settle(event, copies)
  local also = ''
  for _, c in ipairs(copies) do
    local log, there, notes = c.log, nil, nil
    if marked[log] then
      there, notes = markerOf(log, marker(log, string.match(event, '^{"id":"([^"]*)"') or ''))
    end
    if c.how ~= '' then
      local id, look, since, mark, other = string.match(c.how, '^([^|]*)|(%d+)|(%d*)|([1?]?)|(.*)$')
      if mark ~= '' then c.own, c.only = marker(log, id), mark == '?' end
      if not there then there, notes = find(log, id, tonumber(look), since) end
      also = join(also, other)
    end
    if there then
      c.there, c.notes, c.reply = there, notes, '=' .. there .. ' ' .. notes
      also = join(join(also, channels[log] .. '@' .. there), notes)
    end
  end
  local told = also == ''
  for i, c in ipairs(copies) do
    local log, err = c.log, nil
    if c.only and not c.there then
      -- A replica, that was a master once, does not know.
      local may = pcall('PERSIST', KEYS[log] .. ':none')
      if type(may) == 'table' and string.find(may.err, '^READONLY') then readonly = may.err end
      c.reply = '-'
    elseif not c.there then
      c.there, err = append(log, event, also)
      c.notes = also
      if c.there then
        c.reply = ring(log, event, c.there, told)
        also = also .. (also == '' and '' or ' ') .. channels[log] .. '@' .. c.there
      else
        if string.find(err, '^READONLY') then readonly = err end
        c.reply = '!' .. err
      end
    end
    if c.own and c.there then
      local set = pcall('SET', c.own, c.there .. ' ' .. c.notes, 'PX', ARGV[1])
      if not set.err then set = pcall('SET', marker(log, ''), '', 'PX', ARGV[1]) end
      if set.err then c.reply = '~' .. c.there .. ' ' .. set.err end
      marked[log] = true
    end
    copies[i] = c.reply
  end
  return copies
end

for _, rest in ipairs(left or {}) do
  local log, all, alike = rest.log, {}, true
  if rest.stale then takeBack(log, rest.stale) end
  for i = 1, rest.n do
    all[i] = settle(ARGV[rest.at + i - 1], {{log = log, how = ''}})[1]
    alike = alike and string.byte(all[i]) == 43 -- '+'
  end
  alike = alike and string.match(all[1], '^.%d+') == string.match(all[rest.n], '^.%d+')
  replies[rest.reply] = alike and all[1] or all
  logOf[rest.reply] = log
end
while a <= #ARGV do
  local event, copies, first = ARGV[a + 1], {}, #replies
  repeat
    copies[#copies + 1] = {log = tonumber(ARGV[a]), how = ARGV[a + 2]}
    logOf[first + #copies] = copies[#copies].log
    a = a + 3
  until a > #ARGV or ARGV[a + 1] ~= ''
  for i, reply in ipairs(settle(event, copies)) do replies[first + i] = reply end
end
if readonly then
  -- Nothing was written. As an error of the whole call, it makes the client drop its
  -- connection to what was a master once.
  return redis.error_reply(readonly)
end
for log in pairs(touched) do
  local set
  if lives[log] == '0' then set = pcall('PERSIST', KEYS[log]) else set = pcall('PEXPIRE', KEYS[log], lives[log]) end
  if type(set) == 'table' then
    local function late(reply) return string.byte(reply) == 43 and '~' .. sub(reply, 2) .. ' ' .. set.err or reply end
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
